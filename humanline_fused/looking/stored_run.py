"""Settings, a checkpoint and the training data of a run, read from its folder."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase, TrainingArguments

from humanline_fused.training.config import HumanlineConfig
from humanline_fused.training.data.examples import Example, fingerprint
from humanline_fused.training.data.held_out import trained_on
from humanline_fused.training.data.plan import BatchPlan, BatchSizes, MicroBatch, RoundPlan, micro_batch
from humanline_fused.training.data.prepare import prepare
from humanline_fused.training.data.prompts import prepare_prompts
from humanline_fused.training.data.store import StoredExamples
from humanline_fused.training.kept_tokens import find_kept
from humanline_fused.training.objectives.objective import Objective
from humanline_fused.training.objectives.table import ROUND, recorded_objective
from humanline_fused.training.online.logged_samples import COMPLETIONS, logged_groups
from humanline_fused.training.online.rollout import round_examples, round_plan
from humanline_fused.training.run.checkpoint import checkpoints, complete_checkpoint, step_of
from humanline_fused.training.run.identity import code_of
from humanline_fused.training.run.json_lines import read
from humanline_fused.training.run.manifest import faults
from humanline_fused.training.run.resumable import IDENTITY, load_run_state
from humanline_fused.training.run.settings_file import SETTINGS, read_object, read_settings

NEEDED = ("use_cpu", "model", "objective", "per_device_train_batch_size", "gradient_accumulation_steps")
"""Settings without which a folder's run cannot be shown; later ones have defaults."""


@contextmanager
def reading(place: Path) -> Iterator[None]:
    """Raise ValueError, with the place, if files there are not as a run writes them."""
    try:
        yield
    except (ValueError, OSError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # torch, tokenizers and safetensors raise errors of many kinds
        text = f"{type(error).__name__}: {error}"
        raise ValueError(f"{place}: expected what a run of this trainer writes, got something else ({text})") from error


@dataclass(frozen=True)
class StoredRun:
    """A run at one of its checkpoints.

    Attributes:
        folder: the run's folder.
        checkpoint: the folder with the weights before optimizer step ``step``.
        step: number of optimizer steps before the checkpoint.
        settings: the settings stored in the run's folder, by field.
        config: humanline's own fields of them, for computation on this machine; ``model`` and ``dataset`` are replaced
            if others were given.
        objective: the config's objective.
        identity: model, data and batches that the checkpoint belongs to.
        tokenizer: the checkpoint's tokenizer.
        replaced: True if ``dataset`` was replaced, so that the tokens kept beside the run are not used.
        device: the run's device if this machine has one, else the CPU.
    """

    folder: Path
    checkpoint: Path
    step: int
    settings: Mapping[str, Any]
    config: HumanlineConfig
    objective: Objective
    identity: Mapping[str, Any]
    tokenizer: PreTrainedTokenizerBase
    replaced: bool
    device: torch.device

    def state(self) -> dict[str, Any]:
        """Return the checkpoint's reference: its weights, or log-probs of coming steps."""
        with reading(self.checkpoint):
            return dict(load_run_state(self.checkpoint))

    def examples(self) -> StoredExamples:
        """Return the training data: the tokens kept beside the run, or else the dataset, read again.

        Raises:
            ValueError: the settings name no data, the data cannot be read, or they differ from the run's.
        """
        if (kept := self._kept()) is not None:
            return kept
        config = self.config
        data = prepare(
            self._dataset(),
            self.tokenizer,
            self.objective,
            max_length=config.max_length,
            split=config.dataset_split,
            scale_rewards=config.scale_rewards,
            drop_no_signal=self.objective.drops_ties(config),
            train_on=config.train_on,
            columns=config.columns,
        )
        return self._unchanged(trained_on(data.examples, self.identity["batches"].get("eval_fraction")))

    def prompts(self) -> Sequence[Example]:
        """Return the prompts of a run in rounds, as :meth:`examples`.

        Raises:
            ValueError: as in :meth:`examples`.
        """
        if (kept := self._kept()) is not None:
            return kept
        config = self.config
        settings: dict[str, Any] = {"split": config.dataset_split, "columns": config.columns}
        data = prepare_prompts(self._dataset(), self.tokenizer, ROUND, max_length=config.max_length, **settings)
        return self._unchanged(data.examples)

    def _kept(self) -> StoredExamples | None:
        if self.replaced:
            return None
        batches = self.identity["batches"]
        given = batches.get("groups"), batches.get("eval_fraction")
        return find_kept(self.folder, batches["num_examples"], batches["data"], *given)

    def _dataset(self) -> str:
        if self.config.dataset is None:
            raise ValueError("--dataset: expected the training data, which this run was given in memory, got none")
        return self.config.dataset

    def _unchanged(self, examples: StoredExamples) -> StoredExamples:
        then = self.identity["batches"]["num_examples"], self.identity["batches"]["data"]
        now = len(examples), fingerprint(examples)
        groups, units = self.identity["batches"].get("groups"), examples.units
        if then != now or groups not in (None, units and units.code):
            raise ValueError(
                f"{self.config.dataset}: expected the data that {self.folder} was trained on ({then[0]} examples, "
                f"fingerprint {then[1]}), got {now[0]}, fingerprint {now[1]}: the file has changed since, or is another"
            )
        return examples


def open_run(
    folder: Path, step: int | None = None, *, model: str | None = None, dataset: str | None = None
) -> StoredRun:
    """Return a run at the checkpoint of ``step``; default its newest complete one.

    Args:
        folder: the run's folder.
        step: step of the checkpoint.
        model, dataset: replace those in the run's settings.

    Raises:
        ValueError, OSError: the folder has no settings or no such checkpoint; the message lists the checkpoints.
    """
    settings = read_settings(folder)
    if lacking := [name for name in NEEDED if name not in settings]:
        raise ValueError(f"{folder / SETTINGS}: expected the settings of a run, got none of {', '.join(lacking)}")
    checkpoint = complete_checkpoint(folder, step)
    asked = {name: value for name, value in (("model", model), ("dataset", dataset)) if value is not None}
    device = torch.device("cuda" if torch.cuda.is_available() and not settings["use_cpu"] else "cpu")
    with reading(folder):
        identity = read_object(checkpoint / IDENTITY, "a checkpoint of this trainer")
        config = _config(settings | asked, identity, folder, device)
        return StoredRun(
            folder=folder,
            checkpoint=checkpoint,
            step=step_of(checkpoint),
            settings=settings,
            config=config,
            objective=config.make_objective(),
            identity=identity,
            tokenizer=cast(PreTrainedTokenizerBase, AutoTokenizer.from_pretrained(checkpoint)),
            replaced=dataset is not None,
            device=device,
        )


def newest_with_samples(folder: Path) -> int | None:
    """Return the step of a run's newest complete checkpoint whose round has samples.

    At a step that begins a round there are none yet, so that the last checkpoint of a run often has none. None for a
    run without rounds, or without such a checkpoint.
    """
    every = read_settings(folder).get("rollout_every")
    if not every:
        return None
    begun = {line.get("step") for line in read(folder / COMPLETIONS)}
    complete = (step_of(checkpoint) for checkpoint in checkpoints(folder) if not faults(checkpoint))
    return next((step for step in complete if step - step % every in begun), None)


def _config(
    settings: dict[str, Any], identity: Mapping[str, Any], folder: Path, device: torch.device
) -> HumanlineConfig:
    """Return a config with humanline's own fields; Trainer's fields concern training on the run's machines."""
    own = {f.name for f in fields(HumanlineConfig)} - {f.name for f in fields(TrainingArguments)}
    kept = {name: settings[name] for name in own & settings.keys()}
    kept |= {"max_length": identity["batches"]["max_length"], "objective_kwargs": None}
    kept["objective"] = recorded_objective(identity["batches"], settings["objective"], settings.get("objective_kwargs"))
    if settings["model"] is None:  # given in memory, so model_dtype does not describe it
        kept["model_dtype"] = "auto"
    if kept.get("impl") == "triton" and device.type == "cpu":
        kept["impl"] = "auto"
    return HumanlineConfig(output_dir=str(folder), use_cpu=True, report_to="none", **kept)


def examples_of(run: StoredRun, step: int) -> tuple[Sequence[Example], list[MicroBatch]]:
    """Return the training data, and the micro-batches of optimizer step ``step``, of all ranks in order.

    Raises:
        ValueError: as in :meth:`StoredRun.examples`; or the samples of this step are missing, for a run in rounds.
    """
    with reading(run.folder):
        batches, settings = run.identity["batches"], run.settings
        size, accumulation = settings["per_device_train_batch_size"], settings["gradient_accumulation_steps"]
        ranks = batches["global_batch_size"] // (size * accumulation)
        sizes, seed = BatchSizes(size, accumulation, ranks), batches["seed"]
        if run.config.rollout_every:
            examples, plan = _round_of(run, step, sizes, seed)
        else:
            examples = run.examples()
            units = examples.units if "groups" in batches else None  # an earlier version shuffled single completions
            plan = BatchPlan(batches["num_examples"], sizes, seed, units)
        return examples, [micro for rank in range(ranks) for micro in plan.window(step, rank)]


def _round_of(run: StoredRun, step: int, sizes: BatchSizes, seed: int) -> tuple[list[Example], RoundPlan]:
    """Return the examples of ``step``'s round from the run's folder, and the plan of the rounds."""
    config, prompts = run.config, run.prompts()
    assert config.rollout_every is not None
    plan = round_plan(config, run.objective, len(prompts), sizes, seed)
    first = step - step % config.rollout_every
    file, run_code = run.folder / COMPLETIONS, code_of(run.identity)
    groups = logged_groups(file, first, plan, config.num_generations, run_code)
    return round_examples(groups, prompts, run.objective, plan)[0], plan


def example_of(run: StoredRun, index: int) -> tuple[Sequence[Example], list[MicroBatch]]:
    """Return the training data, and a micro-batch with only example ``index``.

    Raises:
        ValueError: as in :meth:`StoredRun.examples`, or the index is out of range.
    """
    if run.config.rollout_every:
        raise ValueError("--example: expected --step for a run in rounds, which samples new examples in every round")
    examples = run.examples()
    if not 0 <= index < len(examples):
        raise ValueError(f"--example: expected 0 to {len(examples) - 1}, got {index}")
    return examples, [micro_batch((index, (index + 1) % len(examples)), 0, 1)]
