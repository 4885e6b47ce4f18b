"""Additions of both trainers to TRL's: the reference, the loss on log-ratios, metrics and checkpoints."""

import copy
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType, is_peft_model
from torch import Tensor, nn
from trl.trainer.base_trainer import _BaseTrainer
from trl.trainer.utils import disable_dropout_in_model

from humanline_fused.integrations.trl.argument import PAPER, Humanline
from humanline_fused.integrations.trl.choice import ForwardChoice
from humanline_fused.integrations.trl.forward import ForwardPass
from humanline_fused.integrations.trl.log_ratios import LogRatios, zero_reference
from humanline_fused.integrations.trl.refused import refuse_arguments
from humanline_fused.reference import AdapterReference, CopyReference
from humanline_fused.reference.adapter import ADAPTER
from humanline_fused.reference.lookahead import TokenScores
from humanline_fused.reference.sync import pair_tensors, refuse_shared_storage
from humanline_fused.training.run.reference_sync import ReferenceSync

REFERENCE_FILE = "trl_reference.pt"
"""File that a checkpoint has besides TRL's own files."""

EARLIER_REFERENCE_FILE = "reference.pt"
"""Former name of this file; checkpoints that have it stay readable."""


def _scored_in_the_loss(step: int) -> list[TokenScores]:
    raise NotImplementedError("TRL's batches are not known ahead")


class HumanlineMixin(_BaseTrainer):
    """Additions of both trainers to TRL's; none with ``humanline`` off."""

    _losses: tuple[str, ...]
    args: Any
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
        if not isinstance(humanline, Humanline | None):
            raise TypeError(f"humanline: expected Humanline(...) or None, got {type(humanline).__name__}")
        self.humanline = None if humanline is None or humanline.is_off else humanline
        if self.humanline is None:
            super().__init__(model=model, ref_model=ref_model, args=args, **others)
            return
        if args is not None:
            refuse_arguments(args, self._losses)
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
        self._forward = self._choose_forward(self.humanline)

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
            if ADAPTER in model.peft_config:  # TRL's copy lacks tensors that PEFT keeps elsewhere
                model.delete_adapter(ADAPTER)
            try:
                adapter = AdapterReference(_scored_in_the_loss, model, sync_every)
            except ValueError as error:
                raise ValueError(f"model: expected LoRA that a second adapter can represent ({error})") from error
            if self.args.disable_dropout:  # TRL did so before the second adapter was there
                disable_dropout_in_model(model)
            return adapter
        check = refuse_shared_storage if sync_every is None else pair_tensors
        check(self.ref_model, model)
        return CopyReference(_scored_in_the_loss, self.ref_model.requires_grad_(False).eval(), sync_every)

    def _choose_forward(self, asked: Humanline) -> ForwardChoice:
        trainer: Any = self
        why_trl = None
        if trainer._is_vision_dataset:
            why_trl = "the data have images"
        elif trainer.aux_loss_enabled:
            why_trl = "the loss has the router's auxiliary loss"
        second = self.reference.model if isinstance(self.reference, CopyReference) else None
        say = partial(print, flush=True) if self.is_world_process_zero() else lambda line: None
        assert self.model is not None
        return ForwardChoice(asked, self.model, second, trainer.args.max_length or sys.maxsize, why_trl, say)

    def _score_reference(self, forward: ForwardPass) -> Tensor:
        with torch.no_grad(), self.accelerator.autocast():  # accelerate's own context ends before the head
            if isinstance(self.reference, CopyReference):
                outputs = forward(self.reference.model, log_probs_only=True)
            else:
                with self.reference.active():
                    model: Any = self.model
                    outputs = forward(model.eval(), log_probs_only=True)  # eval: no dropout
        assert outputs.log_probs is not None
        return outputs.log_probs

    # The loss

    def _compute_loss(self, model: Any, inputs: Any, return_outputs: bool) -> Any:
        parent: Any = super()
        if self.humanline is None:
            return parent._compute_loss(model, inputs, return_outputs)
        ratios = LogRatios(model, self._score_reference, self.humanline, partial(self._forward, model))
        reference, self.ref_model = self.ref_model, zero_reference
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
