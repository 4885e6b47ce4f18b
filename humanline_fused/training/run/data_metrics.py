"""Metrics of how well the data still fit the reference and the policy, from scores that a step computes anyway.

The paper's Assumption 4.1 treats offline data as drawn from the current reference (arXiv 2509.24207, section 4). During
a run it decays: ``humanline/surplus`` and ``humanline/mean_ratio`` say how far, and ``humanline/data_drift`` how far
the policy has left the data. The formulas are those of :mod:`humanline_fused.perception.diagnostics`.
"""

import sys
from collections.abc import Callable

import torch
from torch import Tensor

from humanline_fused.training.config import HumanlineConfig
from humanline_fused.training.objectives.metrics import Weighted
from humanline_fused.training.objectives.objective import LossResult


def steps_of_initial_reference(config: HumanlineConfig, *, reference_model: bool, rounds: bool) -> range:
    """Return the steps whose reference is the initial policy.

    Args:
        reference_model: the user gave the reference's first weights, which may be another model's.
        rounds: the data are new in each round, so they have no drift: no steps.
    """
    if rounds:
        return range(0)
    if config.reference == "frozen" or config.sync_every is None:
        return range(0 if reference_model else sys.maxsize)
    return range(int(reference_model), config.sync_every + 1)


class DataMetrics:
    """Sums of a run's data metrics on this rank, on the device.

    The drift compares each token with the initial policy where that is the reference; later with the mean over the
    tokens of those steps, the baseline. A baseline that was not kept (a checkpoint of an earlier version) leaves the
    drift out.

    Args:
        initial: the steps whose reference is the initial policy; empty to leave out the drift.
    """

    def __init__(self, initial: range) -> None:
        self.initial = initial
        self.baseline: Tensor | None = None
        self.paired: Tensor | None = None
        self.later: Tensor | None = None

    def update(self, step: int, out: LossResult, ref_entropy: Tensor | None, loss_mask: Tensor) -> dict[str, Weighted]:
        """Add a micro-batch of ``step``; return its mean ratio, and its surplus if the reference has entropies."""
        tokens = loss_mask.sum()

        def total(values: Tensor) -> Tensor:
            return values.detach().float().where(loss_mask, 0.0).sum()

        if step in self.initial:
            self.paired = _added(self.paired, total(out.ref_logp - out.logp), tokens)
            self.baseline = _added(self.baseline, total(out.ref_logp), tokens)
        elif self.initial:
            self.later = _added(self.later, total(out.logp), tokens)
        metrics = {"humanline/mean_ratio": Weighted(total((out.logp - out.ref_logp).exp()), tokens)}
        if ref_entropy is not None:
            metrics["humanline/surplus"] = Weighted(total(-out.ref_logp - ref_entropy), tokens)
        return metrics

    def drain(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Return the drift since the last call, over all ranks by ``reduce``. Collective."""
        sums = [self.baseline, self.paired, self.later]
        given = next((part for part in sums if part is not None), None)
        if given is None:
            return {}
        empty = torch.zeros_like(given)
        (base, at), (paired, near), (later, far) = reduce(
            torch.stack([empty if part is None else part for part in sums])
        ).tolist()
        self.paired = self.later = None
        if not near + far or (far and not at):
            return {}
        return {"humanline/data_drift": (paired + (far * base / at - later if far else 0.0)) / (near + far)}

    def state_dict(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """Return the baseline over all ranks. Collective."""
        return {} if self.baseline is None else {"baseline": reduce(self.baseline).cpu()}

    def load_state_dict(self, state: dict[str, Tensor], device: torch.device, world_size: int) -> None:
        """Continue from :meth:`state_dict`, on any number of ranks: each takes an equal part of the sums."""
        self.paired = self.later = None
        baseline = state.get("baseline")
        self.baseline = None if baseline is None else baseline.to(device) / world_size


def _added(sums: Tensor | None, total: Tensor, tokens: Tensor) -> Tensor:
    pair = torch.stack([total, tokens.float()])
    return pair if sums is None else sums + pair
