"""TRL's DPO and KTO trainers with humanline's clamp and synced reference (docs/trl.md).

The loss stays TRL's: it receives clamped log-ratios as the policy's log-probs, and zeros as the reference's.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType, is_peft_model
from packaging.version import Version
from torch import Tensor, nn

try:
    import trl
    from trl.trainer.base_trainer import _BaseTrainer
    from trl.trainer.dpo_trainer import DPOTrainer
    from trl.trainer.kto_trainer import KTOTrainer
    from trl.trainer.utils import FusedCausalLMOutput
except ImportError as error:
    raise ImportError(
        f"expected trl>=1.16,<1.17, got an error ({error}): pip install 'humanline-fused[trl]'"
    ) from error

from humanline_fused import HumanlineClamp, TokenLogp, token_log_ratio
from humanline_fused.reference import AdapterReference, CopyReference
from humanline_fused.reference.adapter import ADAPTER
from humanline_fused.reference.lookahead import TokenScores
from humanline_fused.reference.sync import pair_tensors, refuse_shared_storage
from humanline_fused.training.run.reference_sync import ReferenceSync

# The overridden methods are private to TRL: another minor version may compute its loss elsewhere, without an error.
if Version(trl.__version__).release[:2] != (1, 16):
    raise ImportError(f"expected trl>=1.16,<1.17, got {trl.__version__}: pip install 'humanline-fused[trl]'")

REFERENCE_FILE = "trl_reference.pt"
"""File that a checkpoint has besides TRL's own files."""

EARLIER_REFERENCE_FILE = "reference.pt"
"""Former name of this file; checkpoints that have it stay readable."""


@dataclass(frozen=True)
class Humanline(HumanlineClamp):
    """The argument that humanline adds to TRL's trainers: bounds of the clamp and sync interval.

    Args:
        log_epsilon_P, log_epsilon_R: bounds of each token's log-ratio, nats, as in :class:`HumanlineClamp`.
        sync_every: k ≥ 1: copy the policy into the reference before the update of steps 0, k, 2k …; None never syncs.

    Raises:
        ValueError: the bounds do not enclose 0, or ``sync_every`` is not an integer ≥ 1.

    Source: arXiv 2509.24207, section 4.

    >>> Humanline(sync_every=4)
    Humanline(log_epsilon_P=-1.5, log_epsilon_R=1.5, sync_every=4)
    """

    sync_every: int | None = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        k = self.sync_every
        if k is not None and (isinstance(k, bool) or not isinstance(k, int) or k < 1):
            raise ValueError(f"sync_every: expected an integer >= 1 or None, got {k!r}")

    @property
    def is_off(self) -> bool:
        """True if clamp and sync are both off, so that training is TRL's own."""
        return self.log_epsilon_P == -torch.inf and self.log_epsilon_R == torch.inf and self.sync_every is None


PAPER = Humanline()

REFUSED = {
    "sync_ref_model": (False, "TRL's sync comes after the update and averages; humanline's is sync_every"),
    "precompute_ref_log_probs": (False, "sums over sequences cannot be clamped per token"),
    "use_liger_kernel": (False, "not tested"),
    "f_divergence_type": ("reverse_kl", "not tested; the clamp bounds a log-ratio"),
    "ld_alpha": (None, "not tested; it weights log-probs, which would be log-ratios"),
    "use_weighting": (False, "it computes weights from log-probs, which would be log-ratios"),
    "enable_jit_checkpoint": (False, "it saves in the middle of a step"),
    "parallelism_config": (None, "not tested"),
}
"""TRL arguments that humanline does not support: required value and reason."""


def refuse_arguments(args: Any, loss_type: str) -> None:
    """Raise ValueError for settings that would silently break humanline, before a model is loaded."""
    given = args.loss_type if isinstance(args.loss_type, list) else [args.loss_type]
    if given != [loss_type]:
        raise ValueError(f"loss_type: expected {loss_type!r} (others are not tested), got {args.loss_type!r}")
    for name, (expected, why) in REFUSED.items():
        got = getattr(args, name, expected)
        if got != expected:
            raise ValueError(f"{name}: expected {expected!r} ({why}), got {got!r}")


def _scored_in_the_loss(step: int) -> list[TokenScores]:
    raise NotImplementedError("TRL's batches are not known ahead")


def _zero_reference(labels: Tensor, **inputs: Any) -> FusedCausalLMOutput:
    return FusedCausalLMOutput(log_probs=torch.zeros(labels[:, 1:].shape, device=labels.device))


class LogRatios:
    """Replaces the policy in TRL's loss; its ``log_probs`` are clamped log-ratios.

    KTO's mismatched pairs are scored by the same calls, so their tokens are clamped too. :attr:`last` and
    :attr:`loss_mask` belong to the last call, which is the one with the gradient.
    """

    def __init__(self, policy: Callable[..., Any], reference: Callable[..., Tensor], clamp: HumanlineClamp) -> None:
        self.policy = policy
        self.reference = reference
        self.clamp = clamp

    def __call__(self, **inputs: Any) -> Any:
        outputs = self.policy(**inputs)
        if not inputs.get("fused_lm_head"):  # whole logits, for compute_metrics
            return outputs
        targets = inputs["labels"][:, 1:]
        self.loss_mask = targets != -100
        scores = TokenLogp(outputs.log_probs), TokenLogp(self.reference(**inputs))
        self.last = token_log_ratio(*scores, targets, self.loss_mask, clamp=self.clamp)
        outputs.log_probs = self.last.log_ratio
        return outputs


class _HumanlineMixin(_BaseTrainer):
    """Additions of both trainers to TRL's; none with ``humanline`` off."""

    _tested_loss: str
    ref_model: Any
    _metrics: Any

    def __init__(
        self,
        model: Any,
        ref_model: Any = None,
        args: Any = None,
        *,
        humanline: Humanline | None = PAPER,
        **others: Any,
    ) -> None:
        self.humanline = None if humanline is None or humanline.is_off else humanline
        if self.humanline is None:
            super().__init__(model=model, ref_model=ref_model, args=args, **others)
            return
        if args is not None:
            refuse_arguments(args, self._tested_loss)
        loaded = isinstance(model, nn.Module)
        adapters: Any = model.peft_config if loaded and is_peft_model(model) else ()
        if ADAPTER in adapters:
            raise ValueError(f"model: expected no adapter called {ADAPTER!r}, which is the reference's name")
        if adapters or others.get("peft_config") is not None:
            if ref_model is not None:
                raise ValueError("ref_model: expected None with a PEFT model, whose reference is a second adapter")
        elif loaded and ref_model is None:
            ref_model = copy.deepcopy(model)  # TRL would load the model's folder, without later training
        super().__init__(model=model, ref_model=ref_model, args=args, **others)
        self._refuse_engine()
        self.reference = self._make_reference(self.humanline.sync_every)
        self.add_callback(ReferenceSync(self.reference))

    def _refuse_engine(self) -> None:
        kind = self.accelerator.distributed_type
        if kind not in (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU):
            raise ValueError(
                f"expected a whole model in every process (one process or DDP), got {kind.value}, which is not tested. "
                "HumanlineTrainer runs under FSDP2 and DeepSpeed"
            )

    def _make_reference(self, sync_every: int | None) -> CopyReference | AdapterReference:
        model: Any = self.model
        if is_peft_model(model):
            if ADAPTER in model.peft_config:
                model.delete_adapter(
                    ADAPTER
                )  # TRL's copy of the initial adapter lacks tensors that PEFT keeps elsewhere
            try:
                return AdapterReference(_scored_in_the_loss, model, sync_every)
            except ValueError as error:
                raise ValueError(f"model: expected LoRA that a second adapter can represent ({error})") from error
        check = refuse_shared_storage if sync_every is None else pair_tensors
        check(self.ref_model, model)
        return CopyReference(_scored_in_the_loss, self.ref_model.requires_grad_(False).eval(), sync_every)

    @torch.no_grad()
    def _score_reference(self, **inputs: Any) -> Tensor:
        inputs.pop("output_router_logits", None)
        if isinstance(self.reference, CopyReference):
            return self.reference.model(**inputs).log_probs
        with self.reference.active():
            model: Any = self.model
            return model.eval()(**inputs).log_probs  # eval: TRL does not disable the dropout of adapters

    # The loss

    def _compute_loss(self, model: Any, inputs: Any, return_outputs: bool) -> Any:
        parent: Any = super()
        if self.humanline is None:
            return parent._compute_loss(model, inputs, return_outputs)
        ratios = LogRatios(model, self._score_reference, self.humanline)
        reference, self.ref_model = self.ref_model, _zero_reference
        try:
            result = parent._compute_loss(ratios, inputs, return_outputs)
        finally:
            self.ref_model = reference
        self._report(ratios, self._chosen(inputs))
        return result

    def _chosen(self, inputs: Any) -> Tensor:
        """Return which sequences of the batch are chosen, [B], bool."""
        raise NotImplementedError

    def _report(self, ratios: LogRatios, chosen: Tensor) -> None:
        """Replace the log-ratios that TRL logged as log-probs by log-probs, and log ``humanline/*``."""
        assert self.model is not None
        metrics = self._metrics["train" if self.model.training else "eval"]
        out, logps = ratios.last, ratios.last.logp.sum(-1)

        def mean(total: Tensor, count: Tensor) -> float | None:
            both: Any = self.accelerator.gather_for_metrics((total, count))
            total, count = both[0].sum(), both[1].sum()
            return (total / count).item() if count > 0 else None

        for side, members in (("chosen", chosen), ("rejected", ~chosen)):
            value = mean(logps[members].sum(), members.sum())
            if value is not None:
                metrics[f"logps/{side}"][-1] = value
        tokens = ratios.loss_mask.sum()
        ratio = (out.logp - out.ref_logp).exp().where(ratios.loss_mask, 0.0).sum() / tokens.clamp(min=1)
        means = {
            "unclamped": out.unclamped_fraction,
            "clamped_low": out.clamped_low_fraction,
            "clamped_high": out.clamped_high_fraction,
            "mean_ratio": ratio,
        }
        for name, share in means.items():
            value = mean(share * tokens, tokens)
            if value is not None:
                metrics[f"humanline/{name}"].append(value)

    # Checkpoints

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.humanline is None:
            return
        state = {"sync_every": self.humanline.sync_every, "reference": self.reference.state_dict()}
        if self.args.should_save:
            torch.save(state, Path(output_dir, REFERENCE_FILE))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        file = Path(checkpoint, REFERENCE_FILE)
        if not file.is_file() and Path(checkpoint, EARLIER_REFERENCE_FILE).is_file():
            file = Path(checkpoint, EARLIER_REFERENCE_FILE)
        if not file.is_file():
            if self.humanline is not None:
                raise ValueError(f"expected {file}: the checkpoint was not written by this trainer with humanline on")
            return
        state = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
        mine = "humanline off" if self.humanline is None else f"sync_every={self.humanline.sync_every}"
        if mine != f"sync_every={state['sync_every']}":
            raise ValueError(f"expected sync_every={state['sync_every']}, as in {file}, got {mine}")
        self.reference.load_state_dict(state["reference"], self.state.global_step, self.state.max_steps - 1)


class HumanlineDPOTrainer(_HumanlineMixin, DPOTrainer):
    """TRL's ``DPOTrainer`` with clamped log-ratios and a reference that follows the policy.

    Args:
        model, ref_model, args: as in TRL. Without ``ref_model`` the reference is a copy of the given ``model``; for a
            LoRA model, a second adapter.
        humanline: bounds and sync interval; None gives TRL's own training, bitwise.
        others: TRL's other arguments, keyword-only.

    Raises:
        ValueError: a setting would silently break humanline; the message names it and the reason.

    >>> trainer = HumanlineDPOTrainer(
    ...     "start", args=DPOConfig("run"), train_dataset=pairs, humanline=Humanline(sync_every=1)
    ... )  # doctest: +SKIP
    >>> trainer.train()  # doctest: +SKIP
    """

    _tested_loss = "sigmoid"

    def _chosen(self, inputs: Any) -> Tensor:
        rows = inputs["input_ids"]
        return torch.arange(len(rows), device=rows.device) < len(rows) // 2


class HumanlineKTOTrainer(_HumanlineMixin, KTOTrainer):
    """TRL's ``KTOTrainer`` with humanline; as in HALOs, the tokens of its mismatched pairs are clamped too.

    Args:
        model, ref_model, args, humanline, others: as in :class:`HumanlineDPOTrainer`.

    Raises:
        ValueError: as in :class:`HumanlineDPOTrainer`.

    >>> HumanlineKTOTrainer("start", args=KTOConfig("run"), train_dataset=labelled).train()  # doctest: +SKIP
    """

    _tested_loss = "kto"

    def _chosen(self, inputs: Any) -> Tensor:
        return inputs["label"].bool()
