"""Synced reference without a second model: the policy scores the coming steps before its update."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

TokenScores = dict[str, Tensor]
"""Reference log-probs and entropies of one micro-batch, by name in the batch; each [B, T], float32, nats."""


class LookaheadReference:
    """Keeps the reference log-probs of the coming steps instead of a reference model.

    Humanline copies the policy into the reference before the optimizer step of steps 0, k, 2k … So the reference of
    steps t + 1 … t + k is the policy at the *start* of step t: score the batches of those steps there and keep the
    floats per token. The log-probs equal those of a copied model. There is no second model and no hook between backward
    and optimizer step (DeepSpeed has no such hook).

    Args:
        score: takes a step and returns the log-probs of its micro-batches under the current policy.
        sync_every: k ≥ 1, in optimizer steps.

    Source: arXiv 2509.24207, section 4 (the sync).
    """

    def __init__(self, score: Callable[[int], list[TokenScores]], sync_every: int) -> None:
        self.score = score
        self.sync_every = sync_every
        self.last_step = 0
        # Kept on the device that computed them: eight bytes per token, and a move would wait for the GPU.
        self.pending: dict[int, list[TokenScores]] = {}

    def scores(self, step: int, last_step: int) -> list[TokenScores]:
        """Return the reference's log-probs for ``step``. Call once at the start of every step, before any backward.

        Args:
            step: the optimizer step about to begin, from 0.
            last_step: the last step of the run; later steps are not scored.

        Raises:
            ValueError: there are no scores for ``step``.
        """
        self.last_step = last_step
        if step == 0:
            self.pending = {0: self.score(0)}
        if step % self.sync_every == 0:
            for coming in range(step + 1, min(step + self.sync_every, last_step) + 1):
                self.pending[coming] = self.score(coming)
        if step not in self.pending:
            raise ValueError(
                f"no reference scores were kept for step {step} (kept: {sorted(self.pending) or 'none'}). "
                "Call scores() at every step."
            )
        return self.pending.pop(step)

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint, on the CPU."""
        pending = {
            step: [{name: logp.cpu() for name, logp in batch.items()} for batch in window]
            for step, window in self.pending.items()
        }
        return {"sync_every": self.sync_every, "last_step": self.last_step, "pending": pending}

    def load_state_dict(self, state: dict[str, Any], step: int, last_step: int) -> None:
        """Continue from :meth:`state_dict` with ``step``, up to ``last_step``.

        Raises:
            ValueError: the state has another ``sync_every``, or lacks scores up to ``last_step``.
        """
        if state["sync_every"] != self.sync_every:
            raise ValueError(
                f"expected sync_every={state['sync_every']}, which the checkpoint's reference was scored with, "
                f"got {self.sync_every}"
            )
        next_sync = -(-step // self.sync_every) * self.sync_every
        if not set(range(step, min(next_sync, last_step) + 1)) <= state["pending"].keys():
            raise ValueError(
                f"the checkpoint's run was planned to end at step {state['last_step'] + 1} and has no reference scores "
                f"beyond it: expected max_steps <= {state['last_step'] + 1}, got {last_step + 1}"
            )
        self.pending, self.last_step = state["pending"], last_step
