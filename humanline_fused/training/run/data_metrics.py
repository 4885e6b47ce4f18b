"""Metrics of how well the data still fit the reference and the policy, from scores that a step computes anyway.

The paper's Assumption 4.1 treats offline data as drawn from the current reference (arXiv 2509.24207, section 4). During
a run it decays: ``humanline/surplus`` and ``humanline/mean_ratio`` say how far, and ``humanline/data_drift`` how far
the policy has left the data. The formulas are those of :mod:`humanline_fused.perception.diagnostics`.
"""

import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from humanline_fused.training.config import HumanlineConfig
from humanline_fused.training.objectives.metrics import Weighted
from humanline_fused.training.objectives.objective import LossResult


def steps_with_drift(config: HumanlineConfig, *, reference_model: bool, rounds: bool) -> range:
    """Return the steps whose reference is an earlier state of the policy, so that their drift is known.

    Args:
        reference_model: the user gave the reference's first weights, which may be another model's.
        rounds: the data are new in each round, so they have no drift: no steps.
    """
    if rounds:
        return range(0)
    if config.reference == "frozen":
        return range(0 if reference_model else sys.maxsize)
    # Dropout, which the reference has not, would look like a drop, and every sync would add it once more.
    return range(int(reference_model), sys.maxsize) if config.disable_dropout else range(0)


class DataMetrics:
    """Sums of a run's data metrics on this rank, on the device.

    A step compares the policy with the reference on the same tokens, which leaves little noise. At a sync the policy of
    that step becomes the reference, so the drops of the steps with a sync add up to the drop since the start.

    A checkpoint of an earlier version has no such sum: a run that resumes from it leaves out the drift.

    Args:
        measured: the steps that have a drift.
        sync_every: steps between syncs; None: the reference stays.
    """

    def __init__(self, measured: range, sync_every: int | None) -> None:
        self.measured = measured
        self.sync_every = sync_every
        self.restart()

    def restart(self) -> None:
        """Begin a run."""
        self.at_sync: float | None = 0.0
        self.sums: dict[int, Tensor] = {}

    def update(self, step: int, out: LossResult, ref_entropy: Tensor | None, loss_mask: Tensor) -> dict[str, Weighted]:
        """Add a micro-batch of ``step``; return its mean ratio, and its surplus if the reference has entropies."""
        tokens = loss_mask.sum()

        def total(values: Tensor) -> Tensor:
            return values.detach().float().where(loss_mask, 0.0).sum()

        if step in self.measured:
            drop = torch.stack([total(out.ref_logp - out.logp), tokens.float()])
            self.sums[step] = self.sums[step] + drop if step in self.sums else drop
        metrics = {"humanline/mean_ratio": Weighted(total((out.logp - out.ref_logp).exp()), tokens)}
        if ref_entropy is not None:
            metrics["humanline/surplus"] = Weighted(total(-out.ref_logp - ref_entropy), tokens)
        return metrics

    def drain(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Return the drift, a mean over the tokens since the last call, over all ranks by ``reduce``. Collective."""
        drifts, self.at_sync = self._drifts(reduce)
        self.sums = {}
        number = sum(tokens for _, tokens in drifts)
        return {"humanline/data_drift": sum(now * tokens for now, tokens in drifts) / number} if number else {}

    def _drifts(self, reduce: Callable[[Tensor], Tensor]) -> tuple[list[tuple[float, float]], float | None]:
        """Return drift and tokens of each step since the last log line, and the drift at the last sync. Collective."""
        drifts, at_sync = [], self.at_sync
        if not self.sums or at_sync is None:
            return drifts, at_sync
        summed = reduce(torch.stack([*self.sums.values()])).tolist()
        for step, (drop, tokens) in zip(self.sums, summed, strict=True):
            now = at_sync + (drop / tokens if tokens else 0.0)
            drifts.append((now, tokens))
            if self.sync_every and step % self.sync_every == 0:
                at_sync = now
        return drifts, at_sync

    def state_dict(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        """Return the drift at the last sync before the last log line, and the sums of the steps since. Collective."""
        totals = reduce(torch.stack([*self.sums.values()])).cpu() if self.sums else ()
        return {"drift_at_sync": self.at_sync, "sums": dict(zip(self.sums, totals, strict=True))}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device, world_size: int) -> None:
        """Continue from :meth:`state_dict`, on any number of ranks: each takes an equal part of the sums."""
        self.at_sync = state.get("drift_at_sync")
        self.sums = {step: total.to(device) / world_size for step, total in state.get("sums", {}).items()}
