"""The model card of an exported model: how it was trained, and how to cite that.

The text depends on the run alone, on no clock, host or folder, so that a resumed run writes the same bytes.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml
from torch import nn
from transformers import SchedulerType, TrainerState

from humanline_fused import __version__, durable
from humanline_fused.model.fused_head import causal_lm
from humanline_fused.printing import escaped
from humanline_fused.reference.adapter import ADAPTER
from humanline_fused.training.config import HumanlineConfig
from humanline_fused.training.run.metrics_log import TIMES
from humanline_fused.training.run.summary import computation, describe_objective

CARD = "README.md"
"""File name of the card in an exported model's folder."""

PAPER = """@misc{liu2025humanline,
  title = {Humanline: Online Alignment as Perceptual Loss},
  author = {Liu, Sijia and Muennighoff, Niklas and Ethayarajh, Kawin},
  year = {2025},
  eprint = {2509.24207},
  archivePrefix = {arXiv},
  url = {https://arxiv.org/abs/2509.24207}
}"""

PACKAGE = f"""@software{{humanline_fused,
  title = {{humanline-fused}},
  version = {{{__version__}}}
}}"""

_OURS = re.compile(r"^# Written by humanline-fused \(([0-9a-f]{16})\).*\n", flags=re.MULTILINE)
"""The comment in the front matter with a hash of all else, by which a card that somebody has edited is known."""

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def write_card(folder: Path, text: str) -> str:
    """Write the card into ``folder``, unless there is one that is not this function's, or was edited.

    Returns:
        A line on the card that was kept; empty if this one was written.
    """
    file = folder / CARD
    if file.exists() and not _is_ours(file.read_text(encoding="utf-8", errors="replace")):
        return f"{file} is not a card of this trainer, or was edited: kept, so the run's settings are not in it"
    durable.write_text(file, text)
    return ""


def _is_ours(text: str) -> bool:
    found = _OURS.search(text)
    return bool(found) and found[1] == _hash(_OURS.sub("", text, count=1))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@contextmanager
def without_other_cards(model: nn.Module) -> Iterator[None]:
    """Keep peft from writing a card of its own, or into somebody's, when the model is saved."""
    changed: Any = model
    if not hasattr(model, "create_or_update_model_card"):
        yield
        return
    changed.create_or_update_model_card = lambda *args, **kwargs: None
    try:
        yield
    finally:
        del changed.create_or_update_model_card


def card_text(trainer: Any, *, title: str | None = None, front: Mapping[str, Any] | None = None) -> str:
    """Return the card of a trainer's model.

    Args:
        trainer: a :class:`~humanline_fused.training.HumanlineTrainer`.
        title: default the base model and the loss.
        front: further keys of the front matter; tags are added to ours.
    """
    config: HumanlineConfig = trainer.args
    policy = trainer.accelerator.unwrap_model(trainer.model)
    base = str(getattr(causal_lm(policy).config, "_name_or_path", "") or "")
    adapter = _adapter(policy)
    front = {**(front or {})}
    tags = ["humanline", trainer.objective.name, *(["lora"] if adapter else []), *front.pop("tags", ())]
    matter = {
        **({"base_model": base} if is_hub_name(base) else {}),
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": "text-generation",
        **({"datasets": [config.dataset]} if is_hub_name(config.dataset) else {}),
        **front,
        "tags": list(dict.fromkeys(tags)),
    }
    rows = {
        "base model": named(base),
        "loss": describe_objective(config, trainer.objective),
        "reference": _reference(config),
        "data": _data(config, trainer.identity()["batches"]),
        "steps": _steps(config, trainer.state, trainer.plan.sizes.global_batch),
        "optimizer": _optimizer(trainer),
        **({"adapter": adapter} if adapter else {}),
        "versions": _versions(bool(adapter)),
    }
    held_out = _held_out(trainer.state, _best_step(config, trainer.state))
    heading = title or f"{Path(base).name or 'A model'}, trained with {trainer.objective.name}"
    parts = [
        f"# {escaped(heading)}",
        f"Trained with humanline-fused{_method(config)}.",
        _table(("setting", "value"), rows.items()),
        *(["## Held-out data", *held_out] if held_out else []),
        "## Citation",
        f"```bibtex\n{PAPER}\n```",
        f"```bibtex\n{PACKAGE}\n```",
    ]
    dumped = escaped(yaml.safe_dump(matter, sort_keys=False, allow_unicode=True))
    body = "\n\n".join(parts) + "\n"
    whole = f"---\n{dumped}---\n\n{body}"
    return _marked(whole)


def merged_card(text: str) -> str | None:
    """Return the card of an adapter as that of the merged model; None for a card that was edited."""
    if not _is_ours(text):
        return None
    return _marked(_OURS.sub("", text, count=1).replace("library_name: peft\n", "library_name: transformers\n", 1))


def _marked(whole: str) -> str:
    mark = f"# Written by humanline-fused ({_hash(whole)}); an edited card is kept.\n"
    return f"---\n{mark}{whole.removeprefix('---')[1:]}"


def is_hub_name(name: str | None) -> bool:
    """Return whether a name can only be one of the Hub: of the form owner/name, and no file here.

    >>> is_hub_name("Qwen/Qwen2.5-0.5B"), is_hub_name("./start"), is_hub_name("start")
    (True, False, False)
    """
    return bool(name and _HUB_NAME.fullmatch(name)) and not Path(str(name)).exists()


def named(name: str | None) -> str:
    """Return a model's or dataset's name; of a local path its last part, because a card may be published.

    >>> named("Qwen/Qwen2.5-0.5B"), named("/home/me/pairs.jsonl"), named(None)
    ('`Qwen/Qwen2.5-0.5B`', '`pairs.jsonl` (local)', 'given in memory')
    """
    if not name:
        return "given in memory"
    return f"`{name}`" if is_hub_name(name) else f"`{Path(name).name or name}` (local)"


def _method(config: HumanlineConfig) -> str:
    """Return what of humanline the run had."""
    parts = [*(["clamp"] if config.clamp else []), *(["synced reference"] if config.reference != "frozen" else [])]
    parts = ["sampling", *parts[1:]] if config.perception == "sampling" else parts
    paper = "[humanline](https://arxiv.org/abs/2509.24207)"
    return f": {' and '.join(parts)} of {paper}" if parts else f", without anything of {paper}"


def _reference(config: HumanlineConfig) -> str:
    if config.reference == "frozen":
        return "frozen: the base model, never synced"
    return f"{config.reference}, synced with the policy every k={config.sync_every} steps, before the update"


def _data(config: HumanlineConfig, batches: Mapping[str, Any]) -> str:
    kind = "prompts" if config.rollout_every else "examples"
    number = f"{batches['num_examples']} {kind} (fingerprint {batches['data']})"
    rounds = f", with samples of the policy every {config.rollout_every} steps" if config.rollout_every else ""
    return f"{named(config.dataset)}, {number}{rounds}, at most {config.max_length} tokens each"


def _steps(config: HumanlineConfig, state: TrainerState, global_batch: int) -> str:
    done = f"{state.global_step} of {state.max_steps} steps with {global_batch} examples each, seed {config.seed}"
    best = _best_step(config, state)
    return f"{done}; the weights of step {best}, the best by {config.metric_for_best_model}" if best else done


def _best_step(config: HumanlineConfig, state: TrainerState) -> int | None:
    """Return the step whose weights the model has; None for those of the last one."""
    loaded = config.load_best_model_at_end and state.best_model_checkpoint is not None
    return state.best_global_step if loaded else None


def _optimizer(trainer: Any) -> str:
    config = trainer.args
    optim, names = getattr(config.optim, "value", config.optim), ["warmup_steps", "weight_decay", "max_grad_norm"]
    said = [f"lr_scheduler_type={SchedulerType(config.lr_scheduler_type).value}"]
    if trainer.given_optimizer is None:
        said.insert(0, f"learning_rate={config.learning_rate:g}")
    else:  # it has a rate and a decay of its own
        optim = f"{type(trainer.given_optimizer).__name__}, given in memory"
        names.remove("weight_decay")
    said += [f"{name}={getattr(config, name):g}" for name in names]
    computed = computation(trainer.accelerator) or "the weights' type"
    return f"{optim}, {', '.join(said)}, computed in {computed}"


def _adapter(policy: Any) -> str:
    """Return the settings of a PEFT model's adapter; empty without one."""
    if not hasattr(policy, "create_or_update_model_card"):
        return ""
    (first, *_) = (config for name, config in policy.peft_config.items() if name != ADAPTER)
    kind = getattr(first.peft_type, "value", first.peft_type)
    layers = first.target_modules
    layers = ", ".join(sorted(layers)) if isinstance(layers, set | list) else str(layers)
    sizes = [f"{name}={getattr(first, name)}" for name in ("r", "lora_alpha") if hasattr(first, name)]
    return ", ".join([str(kind), *sizes, f"on {layers}"])


def _versions(peft: bool) -> str:
    found = {"humanline-fused": __version__, "torch": torch.__version__, "transformers": transformers.__version__}
    if peft:
        from peft import __version__ as installed

        found["peft"] = installed
    return ", ".join(f"{name} {version}" for name, version in found.items())


def _held_out(state: TrainerState, step: int | None) -> Sequence[str]:
    """Return the last evaluation, of ``step`` if given, as text and a table; nothing without one."""
    evaluations = (line for line in reversed(state.log_history) if "eval_loss" in line)
    last = next((line for line in evaluations if step in (None, line["step"])), None)
    if last is None:
        return ()
    numbers = [(name, f"{value:.4g}") for name, value in sorted(last.items()) if _is_result(name, value)]
    return f"After step {last['step']}, relative to the base model:", _table(("metric", "value"), numbers)


def _is_result(name: str, value: Any) -> bool:
    return name.startswith("eval_") and not TIMES.search(name) and isinstance(value, int | float)


def _table(head: tuple[str, str], rows: Any) -> str:
    lines = [head, ("---", "---"), *((name, escaped(str(said)).replace("|", "\\|")) for name, said in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
