"""Log-probs of tokens under a stored run's policy and reference, as the loss of a step compares them."""

import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from humanline_fused.looking.stored_run import StoredRun, reading
from humanline_fused.model.fused_head import causal_lm, score_in_forward_
from humanline_fused.reference import AdapterReference, CopyReference
from humanline_fused.reference.lookahead import TokenScores
from humanline_fused.training import pending
from humanline_fused.training.data.batch import Batch, Layout, collate
from humanline_fused.training.data.examples import Example
from humanline_fused.training.data.plan import MicroBatch
from humanline_fused.training.layouts import choose_layout
from humanline_fused.training.lora import without_peft_warning
from humanline_fused.training.pending import ByExample
from humanline_fused.training.run.untrue_warnings import without_untrue_warnings
from humanline_fused.training.scoring import Scorer
from humanline_fused.training.start import disable_dropout_, identify, load_base, load_policy, pad_token_id_of


@dataclass(frozen=True)
class Compared:
    """Log-probs of the requested examples.

    Attributes:
        policy, reference: named ``ref_logp``; of each sequence the log-probs of its tokens that count, nats.
        who: description of the reference.
        as_trained: True if the loss of the step uses the same reference.
    """

    policy: ByExample
    reference: ByExample
    who: str
    as_trained: bool


class Comparison:
    """Scores micro-batches of a stored run, grouped and laid out as in training: others change the last bits."""

    def __init__(self, run: StoredRun, examples: Sequence[Example], micros: Sequence[MicroBatch]) -> None:
        self.run, self.examples, self.micros = run, examples, micros
        self.scorer = Scorer(run.config, run.objective)

    def compare(self) -> Compared:
        """Return the log-probs of policy and reference, by example.

        Raises:
            ValueError, OSError: weights cannot be loaded.
        """
        state, kind = self.run.state(), self.run.config.reference
        policy = self._by_example(self._scores(self.policy))
        if kind != "lookahead":
            reference = self._by_example(self._stored_reference(state, kind))
            return Compared(policy, reference, self._stored_words(kind), True)
        ids = {i for micro in self.micros for i in micro.ids}
        for step, scores in sorted(state["pending"].items()):
            if ids <= scores.keys():
                since = synced_at(step, self.run.config.sync_every or 1)
                who = f"look-ahead: the policy as it was before step {since}, which scored step {step}'s tokens then"
                run = self.run
                counted = pending.of_counted(scores, self.micros, self.examples, run.objective, run.config.max_length)
                return Compared(policy, counted, who, step == run.step)
        reference, who = self._start()
        return Compared(policy, reference, who, False)

    @cached_property
    def policy(self) -> nn.Module:
        """The model with the checkpoint's weights.

        Raises:
            ValueError: the checkpoint belongs to another model.
        """
        run = self.run
        with reading(run.checkpoint):
            peft_made = run.identity["model"]["class"].startswith("Peft")
            model = _load_adapted(run) if peft_made else self._load(str(run.checkpoint))
        if (kind := identify(model)) != run.identity["model"]:  # pyright: ignore[reportArgumentType]
            raise ValueError(f"{run.checkpoint}: expected the run's model {run.identity['model']}, got {kind}")
        return self._ready(model)

    def _load(self, name: str) -> nn.Module:
        return load_policy(name, self.run.tokenizer, self.run.config)[0]

    def _ready(self, model: nn.Module) -> nn.Module:
        if self.run.config.head == "fused":
            score_in_forward_(model)
        return model.to(self.run.device).eval()

    def _batches(self) -> list[Batch]:
        run = self.run
        sizes = {"pad_token_id": pad_token_id_of(run.tokenizer, self.policy), "max_length": run.config.max_length}
        settings: dict[str, Any] = {"layout": self._layout, **sizes}
        return [collate(self.examples, micro, run.objective, **settings).to(run.device) for micro in self.micros]

    @cached_property
    def _layout(self) -> Layout:
        config, models = self.run.config, [(self.policy, self.policy)]
        return choose_layout(config.layout, self.run.objective, models, self.examples, config.max_length).layout

    def _autocast(self) -> AbstractContextManager[Any]:
        settings = self.run.settings
        dtype = torch.bfloat16 if settings.get("bf16") else torch.float16 if settings.get("fp16") else None
        return torch.autocast(self.run.device.type, dtype) if dtype else nullcontext()

    def _scores(self, model: nn.Module) -> list[TokenScores]:
        with self._autocast(), without_untrue_warnings():
            return [scores for batch in self._batches() for scores in self.scorer.score(model, [batch])]

    def _by_example(self, scored: Sequence[TokenScores]) -> ByExample:
        run = self.run
        return pending.by_example(scored, self.micros, self.examples, run.objective, run.config.max_length)

    def _stored_reference(self, state: dict[str, Any], kind: str) -> list[TokenScores]:
        step, k = self.run.step, self.run.config.sync_every
        if kind == "adapter":
            reference = AdapterReference(lambda _: self._scores(self.policy), self.policy, k or 1)
        else:
            model = copy.deepcopy(self.policy)
            reference = CopyReference(lambda _: self._scores(model), model, k)
        reference.load_state_dict(state, step, step)
        return reference.scores(step, step)

    def _stored_words(self, kind: str) -> str:
        if kind == "frozen":
            return "frozen: the weights that the checkpoint keeps, of the start or of a reference_model"
        since = synced_at(self.run.step, self.run.config.sync_every or 1)
        return f"{kind}: the policy as it was before step {since}, whose weights the checkpoint keeps"

    def _start(self) -> tuple[ByExample, str]:
        """Return scores under the initial policy, and its description."""
        start, scope = self.start()
        if scope is not None:
            with scope:
                return self._by_example(self._scores(start)), "the base model without its adapter"
        return self._by_example(self._scores(start)), f"the policy at the start of the run ({self.run.config.model})"

    def start(self) -> tuple[nn.Module, AbstractContextManager[Any] | None]:
        """Return the initial policy: a model, and for an adapter the scope in which the base model is without it.

        Raises:
            ValueError: the run's settings name no initial policy, or it is another model.
        """
        name, adapter_off = self.run.config.model, getattr(self.policy, "disable_adapter", None)
        if adapter_off:
            return self.policy, adapter_off()
        if name is None:
            raise ValueError(
                f"--model: expected the policy at the start of {self.run.folder}, which was given in memory (the "
                "checkpoint keeps no reference scores of what was asked for), got none"
            )
        start = self._ready(self._load(name))
        if (kind := identify(start)) != self.run.identity["model"]:  # pyright: ignore[reportArgumentType]
            raise ValueError(f"{name}: expected the run's model {self.run.identity['model']}, got {kind}")
        return start, None


def synced_at(step: int, k: int) -> int:
    """Return s such that the policy before step s is the reference of step ``step``; syncs happen at 0, k, 2k …

    >>> [synced_at(step, 3) for step in (0, 1, 2, 3, 4)]
    [0, 0, 0, 0, 3]
    """
    return max(step - 1, 0) // k * k


def _load_adapted(run: StoredRun) -> nn.Module:
    """Return the PEFT model: the checkpoint's adapter on its base model."""
    try:
        from peft import PeftConfig, PeftModel
    except ImportError as missing:
        raise ValueError(
            f"{run.checkpoint}: expected peft, which is not installed (pip install 'humanline-fused[peft]')"
        ) from missing
    files = sorted(run.checkpoint.rglob("adapter_config.json"))
    if len(files) != 1:
        raise ValueError(f"{run.checkpoint}: expected one adapter, got {len(files)}")
    folder = files[0].parent
    base = run.config.model or PeftConfig.from_pretrained(str(folder)).base_model_name_or_path
    if not base:
        raise ValueError(f"--model: expected the base model of {folder}, which was given in memory, got none")
    model, _ = load_base(base, run.tokenizer, run.config)
    name = "default" if folder == run.checkpoint else folder.name
    with without_peft_warning():
        adapted = PeftModel.from_pretrained(model, str(folder), adapter_name=name)
    if run.config.disable_dropout:
        disable_dropout_(causal_lm(adapted))
    return adapted
