"""Log-probs of the held-out data under the initial policy, the baseline of every evaluation."""

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object

from humanline_fused import durable
from humanline_fused.printing import one_line
from humanline_fused.reference.lookahead import TokenScores
from humanline_fused.training.pending import ByExample

INITIAL_SCORES = "initial_eval_logp.pt"
"""File name of the scores in the run's folder."""


class InitialScores:
    """Scores computed once by the initial policy, and stored in the run's folder for later evaluations.

    They are stored by example, so that any number of processes can read them.

    Args:
        run_dir: the run's folder.
        made_of: data and settings that determine the scores, besides the policy. A file with other values is refused.
        of_batches: makes scores by example of those of all micro-batches in order, [B, T] over all tokens: the form of
            earlier versions' files.
    """

    def __init__(
        self, run_dir: Path, made_of: dict[str, Any], of_batches: Callable[[list[TokenScores]], ByExample]
    ) -> None:
        self.file = run_dir / INITIAL_SCORES
        self.made_of = made_of
        self.of_batches = of_batches
        self.scores: ByExample | None = None

    def make(self, mine: ByExample) -> None:
        """Gather the scores of all ranks. Collective."""
        self.scores = {i: scores for part in gather_object([mine]) for i, scores in part.items()}

    def save(self) -> None:
        """Write the scores to the run's folder."""
        durable.save({"made_of": self.made_of, "scores": self.scores}, self.file)

    def load(self, run_dir: Path | None = None) -> None:
        """Read the scores from ``run_dir``, by default the run's own.

        Raises:
            ValueError: the file is missing or damaged, or its scores belong to other data or settings.
        """
        file = run_dir / INITIAL_SCORES if run_dir else self.file
        if not file.is_file():
            raise ValueError(f"expected {file}: evaluation compares with the initial policy, which was not scored")
        state = _read(file)
        saved = {"temperature": 1.0, **state["made_of"]}  # earlier versions had no other
        if different := [name for name, value in self.made_of.items() if saved.get(name) != value]:
            then, now = ({name: made_of.get(name) for name in different} for made_of in (saved, self.made_of))
            raise ValueError(f"expected the held-out data and settings that {file} was made of, {then}, got {now}")
        scores = state["scores"]
        self.scores = self.of_batches(scores) if isinstance(scores, list) else scores


def _read(file: Path) -> dict[str, Any]:
    """Return what was saved, whose checksums torch itself does not compare."""
    try:
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
        if damaged is None:
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # zipfile and torch raise errors of many kinds for a damaged file
        damaged = one_line(error)
    raise ValueError(
        f"{file} is damaged ({damaged}): evaluation compares with these scores of the initial policy. Restore the "
        "file, or start the run again in another output_dir"
    )
