"""TRL's DPO and KTO trainers with humanline."""

from typing import Any

import torch
from torch import Tensor
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.kto_trainer import KTOTrainer

from humanline_fused.integrations.trl.mixin import HumanlineMixin
from humanline_fused.integrations.trl.refused import DPO_LOSSES, KTO_LOSSES


class HumanlineDPOTrainer(HumanlineMixin, DPOTrainer):
    """TRL's ``DPOTrainer`` with clamped log-ratios and a reference that follows the policy.

    Args:
        model, ref_model, args: as in TRL. Without ``ref_model`` the reference is a copy of the given ``model``; for a
            LoRA model, a second adapter.
        humanline: bounds and sync interval; None gives TRL's own training, bitwise.
        others: TRL's other arguments, keyword-only.

    Raises:
        ValueError: a setting would silently break humanline; the message names it and the reason.

    >>> trainer = HumanlineDPOTrainer(
    ...     "start", args=DPOConfig("run"), train_dataset=pairs, humanline=Humanline(sync_every=None)
    ... )  # doctest: +SKIP
    >>> trainer.train()  # doctest: +SKIP
    """

    _losses = DPO_LOSSES

    def _chosen(self, inputs: Any) -> Tensor:
        rows = inputs["input_ids"]
        return torch.arange(len(rows), device=rows.device) < len(rows) // 2


class HumanlineKTOTrainer(HumanlineMixin, KTOTrainer):
    """TRL's ``KTOTrainer`` with humanline; as in HALOs, the tokens of its mismatched pairs are clamped too.

    Args:
        model, ref_model, args, humanline, others: as in :class:`HumanlineDPOTrainer`.

    Raises:
        ValueError: as in :class:`HumanlineDPOTrainer`.

    >>> HumanlineKTOTrainer("start", args=KTOConfig("run"), train_dataset=labelled).train()  # doctest: +SKIP
    """

    _losses = KTO_LOSSES

    def _chosen(self, inputs: Any) -> Tensor:
        return inputs["label"].bool()
