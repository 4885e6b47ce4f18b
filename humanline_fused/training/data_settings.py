"""Settings of the data that a run reads."""

from dataclasses import dataclass, field
from typing import Literal

from humanline_fused.training.objectives.settings import expect
from humanline_fused.training.objectives.table import OBJECTIVES

TrainOn = Literal["assistant", "completion"]

HELD_OUT = 0.05
"""Share of the examples that is held out by default."""

LEAST_HELD_OUT = 8
"""Held-out examples below which nothing is held out by default: fewer say too little."""


def _help(text: str) -> dict[str, str]:
    return {"help": text}


def _columns() -> str:
    """Return the data columns of each objective as text."""
    return "; ".join(
        f"{name}: {' | '.join(', '.join(kind.columns) for kind in objective.form.types)}"
        for name, objective in OBJECTIVES.items()
    )


@dataclass
class DataSettings:
    """Part of :class:`humanline_fused.training.HumanlineConfig`."""

    dataset: str | None = field(
        default=None,
        metadata=_help(
            "Training data: a JSONL, JSON, CSV, TSV or Parquet file, a folder saved by datasets, or a dataset name. "
            f"Columns: {_columns()}. `humanline data FILE` checks and describes it."
        ),
    )
    dataset_split: str = field(default="train", metadata=_help("Split of the training data, if it has several."))
    eval_dataset: str | None = field(default=None, metadata=_help("Held-out data with the same columns."))
    eval_fraction: float | None = field(
        default=None,
        metadata=_help(
            "Share of the training data that is held out for evaluation, whole prompts, the same for every seed. "
            f"Default: {HELD_OUT:g} without an eval_dataset and without rounds, if these are at least {LEAST_HELD_OUT} "
            "examples. 0 trains on all data."
        ),
    )
    eval_dataset_split: str = field(default="test", metadata=_help("Split of the held-out data, if it has several."))
    columns: dict | str | None = field(
        default=None,
        metadata=_help(
            "Columns of data that have other names: a YAML mapping, JSON, or prompt=question,chosen=good. A list of "
            "columns is joined by newlines; null says that there is no such column."
        ),
    )
    max_length: int = field(
        default=1024,
        metadata=_help(
            "Maximum tokens of prompt and completion together. Longer sequences are cut at the end; an example whose "
            "prompt alone has as many is dropped."
        ),
    )
    train_on: TrainOn = field(
        default="assistant",
        metadata=_help(
            "Tokens of a completion that count. assistant: without what the policy does not write: results of tools "
            "and turns of the user inside the completion. completion: all, as in TRL."
        ),
    )
    strict_data: bool = field(
        default=False,
        metadata=_help(
            "Refuse data of which a part would not be learnt as it is written (docs/data.md lists the findings)."
        ),
    )
    dataset_num_proc: int | None = field(
        default=None,
        metadata=_help("Processes that tokenise. Default: this one, with a thread for every core (at most 8)."),
    )

    def check_fraction(self, *, rounds: bool) -> None:
        """Raise ValueError unless ``eval_fraction`` is a share that can be held out."""
        given = self.eval_fraction
        expect(self, "eval_fraction", given is None or 0 <= given < 1, "a number from 0 to below 1")
        reason = "None or 0 with rollout_every (prompts have no completions to score; give an eval_dataset)"
        expect(self, "eval_fraction", not (rounds and given), reason)
        expect(self, "eval_fraction", not (self.eval_dataset and given), "None or 0 with an eval_dataset")
