"""What a finished run has learnt, as a table: its first and last evaluation, and the rewards of its samples."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from humanline_fused.extras import need, remedy
from humanline_fused.looking.curves import Columns, read_metrics, series
from humanline_fused.looking.plot import plot_runs


class Row(NamedTuple):
    """A quantity before and after training; None: not known.

    Attributes:
        name: of the quantity.
        before, after: its values.
    """

    name: str
    before: float | None
    after: float | None


HELD_OUT = {
    "reward of its own answers": "eval_reward",
    "margin to the initial policy": "eval_rewards_initial/margins",
    "accuracy": "eval_rewards_initial/accuracies",
    "loss against the initial policy": "eval_loss",
    "log-prob of the chosen, nats": "eval_logps/chosen",
    "log-prob of the rejected, nats": "eval_logps/rejected",
}
"""Metrics of an evaluation, by what the table calls them."""

MEANINGLESS_AT_THE_START = {"eval_rewards_initial/accuracies"}
"""Metrics without a meaning before the first step, where policy and initial policy are one."""

ZERO_AT_THE_START = {"eval_rewards_initial/margins"}

DRAWN = ("eval_rewards_initial/margins", "eval_reward", "reward")
"""Metrics whose curves are worth a picture."""


def rows_of(lines: Columns) -> tuple[list[Row], list[Row]]:
    """Return the rows on held-out data, and those on the samples of rounds.

    >>> import numpy as np
    >>> rows_of({"step": np.array([4.0]), "eval_rewards_initial/margins": np.array([0.5])})
    ([Row(name='margin to the initial policy', before=0.0, after=0.5)], [])
    """
    held_out = []
    for name, key in HELD_OUT.items():
        steps, values = series(lines, "step", key)
        if not values or steps[-1] == 0:
            continue
        before = values[0] if steps[0] == 0 and key not in MEANINGLESS_AT_THE_START else None
        held_out.append(Row(name, 0.0 if key in ZERO_AT_THE_START else before, values[-1]))
    _, rewards = series(lines, "step", "reward")
    return held_out, [Row("reward", rewards[0], rewards[-1])] if len(rewards) > 1 else []


def table(title: str, rows: Sequence[Row], columns: tuple[str, str] = ("before", "after")) -> list[str]:
    """Return the lines of a table.

    >>> print("\\n".join(table("held-out data", [Row("margin", 0.0, 0.25), Row("accuracy", None, 0.9)])))
    held-out data                         before     after
      margin                              0.0000    0.2500
      accuracy                                 -    0.9000
    """
    lines = [f"{title:<34} {columns[0]:>9} {columns[1]:>9}"]
    return lines + [f"  {row.name:<32} {_number(row.before):>9} {_number(row.after):>9}" for row in rows]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}" if abs(value) >= 1000 else f"{value:.4f}"


def result_lines(folder: Path, *, held_out: int, sync_every: int | None) -> list[str]:
    """Return the table of a finished run, and what its reader should know of the loss.

    Args:
        folder: the run's folder.
        held_out: number of held-out examples.
        sync_every: k; None if the reference was not synced.

    Raises:
        ValueError: the folder has no log lines.
    """
    names = {*HELD_OUT.values(), "reward"}
    evaluated, sampled = rows_of(read_metrics(folder, names))
    said = table(f"held-out data ({held_out} examples)", evaluated) if evaluated else []
    if sampled:
        said += table("samples of the rounds", sampled, ("first", "last"))
    if not said:
        return ["no held-out data: nothing shows what the policy has learnt (eval_dataset, docs/training.md)"]
    if sync_every is not None:
        said.append(moving(sync_every))
    return said


def moving(sync_every: int) -> str:
    """Return one line on the loss against a moving reference."""
    return (
        f"loss and rewards/* of the log compare with the policy of at most {sync_every} updates ago, so they stay near "
        "their start"
    )


def ending(folder: Path, *, held_out: int, sync_every: int | None) -> list[str]:
    """Return the last lines of `humanline train`: :func:`result_lines`, the picture, and the next command.

    The picture is drawn if there are two evaluations or log lines of a reward to connect, and matplotlib to draw them.

    Raises:
        ValueError: the folder has no log lines.
        OSError: the picture cannot be written.
    """
    lines = read_metrics(folder, DRAWN)
    said = result_lines(folder, held_out=held_out, sync_every=sync_every)
    if any(len(series(lines, "step", name)[0]) > 1 for name in DRAWN):
        try:
            need("plot")
        except ModuleNotFoundError as error:
            said.append(f"no picture: {remedy(error)}")
        else:
            said.append(f"picture: {plot_runs([folder])[-1]}")
    return [*said, f"next: humanline chat {shlex.quote(str(folder))}"]
