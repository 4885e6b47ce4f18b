"""Log-probs of the held-out data under the initial policy, the baseline of every evaluation."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object

from humanline_fused.reference.lookahead import TokenScores
from humanline_fused.training.run.checkpoint import save_atomically

INITIAL_SCORES = "initial_eval_logp.pt"
"""File name of the scores in the run's folder."""


class InitialScores:
    """Scores computed once by the initial policy, and stored in the run's folder for later evaluations.

    Args:
        run_dir: the run's folder.
        made_of: data and settings that determine the scores, besides the policy. A file with other values is refused.
        rank, world_size: micro-batch i of the held-out data belongs to rank ``i % world_size``.
    """

    def __init__(self, run_dir: Path, made_of: dict[str, Any], rank: int, world_size: int) -> None:
        self.file = run_dir / INITIAL_SCORES
        self.made_of = made_of
        self.rank = rank
        self.world_size = world_size
        self.scores: list[TokenScores] | None = None

    def make(self, scored: Iterable[TokenScores]) -> None:
        """Gather the scores of all ranks, each in the order of its micro-batches. Collective."""
        mine = [{name: logp.cpu() for name, logp in scores.items()} for scores in scored]
        everyones = gather_object(mine)  # rank by rank
        turns, ranks = range(len(mine)), range(self.world_size)
        self.scores = [everyones[rank * len(mine) + turn] for turn in turns for rank in ranks]

    def save(self) -> None:
        """Write the scores to the run's folder."""
        save_atomically({"made_of": self.made_of, "scores": self.scores}, self.file)

    def load(self, run_dir: Path | None = None) -> None:
        """Read the scores from ``run_dir``, by default the run's own.

        Raises:
            ValueError: the file is missing, or its scores belong to other data or settings.
        """
        file = run_dir / INITIAL_SCORES if run_dir else self.file
        if not file.is_file():
            raise ValueError(f"expected {file}: evaluation compares with the initial policy, which was not scored")
        state = torch.load(file, map_location="cpu", weights_only=True)
        if different := [name for name, value in self.made_of.items() if state["made_of"].get(name) != value]:
            then, now = (
                {name: made_of.get(name) for name in different} for made_of in (state["made_of"], self.made_of)
            )
            raise ValueError(f"expected the held-out data and settings that {file} was made of, {then}, got {now}")
        self.scores = state["scores"]

    def __getitem__(self, turn: int) -> TokenScores:
        """Return the scores of this rank's ``turn``-th micro-batch, on the CPU."""
        assert self.scores is not None
        return self.scores[min(turn * self.world_size + self.rank, len(self.scores) - 1)]
