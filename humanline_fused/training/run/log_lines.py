"""Log lines for people: aligned, of at most 80 columns, beside `metrics.jsonl`, which has every metric."""

import math
import sys
import time
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any, NamedTuple

from tqdm.auto import tqdm
from transformers import ProgressCallback, Trainer
from transformers.trainer_callback import PrinterCallback

from humanline_fused.printing import escaped, styled

Logs = Mapping[str, Any]


class Column(NamedTuple):
    """A column of the lines.

    Attributes:
        title: heads the column.
        train, eval: names of the metric in training and in an evaluation; empty where there is none.
        always: False for a column that is there once the metric was logged.
    """

    title: str
    train: str
    eval: str
    always: bool = True


COLUMNS = (
    Column("loss", "loss", "eval_loss"),
    Column("margin", "rewards/margins", "eval_rewards_initial/margins", always=False),
    Column("reward", "reward", "eval_reward", always=False),
    Column("unclamped", "humanline/unclamped", "eval_humanline/unclamped"),
)

TIMES = ("time/training", "time/generation", "time/reward")
"""Cumulative seconds in a log line."""


def number(value: Any) -> str:
    """Return a number in at most nine characters; a dash for none.

    >>> number(0.69314), number(-1e-9), number(-123456.0), number(None), number(float("nan"))
    ('0.6931', '0.0000', '-1.23e+05', '-', 'nan')
    """
    if value is None:
        return "-"
    rounded = round(value, 4) + 0.0 if math.isfinite(value) else value  # not -0.0000
    return f"{rounded:.4f}" if math.isnan(value) or abs(value) < 1000 else f"{value:.2e}"


def duration(seconds: float) -> str:
    """Return seconds as hours, minutes and seconds.

    >>> duration(83.4), duration(90000)
    ('0:01:23', '25:00:00')
    """
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


class Lines:
    """Formats log lines, with a header before the first, and before one with further columns.

    Args:
        step: optimizer steps taken so far.
        tokens: tokens of these steps.
        last_step: optimizer steps of the whole run.
        now: seconds of a clock.

    >>> lines = Lines(step=0, tokens=0, last_step=4, now=0.0)
    >>> logs = {"loss": 0.69, "epoch": 0.5, "rewards/margins": 0.0, "humanline/unclamped": 1.0, "num_tokens": 600}
    >>> print("\\n".join(lines.of(2, logs | {"time/training": 3.0}, now=4.0)))
       step   epoch      loss    margin unclamped  tokens/s       ETA
          2    0.50    0.6900    0.0000    1.0000       200   0:00:04
    """

    def __init__(self, *, step: int, tokens: int, last_step: int, now: float) -> None:
        self.first_step, self.last_step, self.began = step, last_step, now
        self.before: tuple[float, float] | None = (0, 0.0) if step == 0 else None  # tokens and seconds
        self.columns: list[Column] = []
        self.printed: list[str] = []

    def of(self, step: int, logs: Logs, now: float) -> list[str]:
        """Return the lines to print for a log line; none if it was printed last, or says nothing of a step."""
        if "train_runtime" in logs:
            took = timedelta(seconds=round(logs["train_runtime"]))
            return [f"trained to step {step} in {took}, mean loss {number(logs.get('train_loss'))}"]
        evaluated, trained = "eval_loss" in logs, "loss" in logs
        if not evaluated and not trained:
            shown = {name: value for name, value in logs.items() if name not in ("epoch", "total_flos")}
            return [", ".join([f"step {step}", *(f"{name} {_any(value)}" for name, value in shown.items())])]
        columns = [c for c in COLUMNS if c.always or c in self.columns or logs.keys() & {c.train, c.eval}]
        header = [_header(columns)] if columns != self.columns else []
        self.columns = columns
        cells = [f"{number(logs.get(c.eval if evaluated else c.train)):>10}" for c in columns]
        epoch = "eval" if evaluated else f"{logs.get('epoch') or 0:.2f}"
        line = f"{step:>7}{epoch:>8}{''.join(cells)}"
        if trained:
            line += f"{self._speed(logs):>10}{self._remaining(step, now):>10}"
        if line in self.printed:
            return header
        self.printed = [*self.printed[-1:], line]
        return [*header, line]

    def _speed(self, logs: Logs) -> str:
        """Return tokens per second since the line before, without evaluation and saving."""
        tokens, seconds = logs.get("num_tokens"), sum(logs.get(name) or 0.0 for name in TIMES)
        before, self.before = self.before, None if tokens is None else (tokens, seconds)
        if tokens is None or before is None or seconds <= before[1]:
            return "-"
        speed = (tokens - before[0]) / (seconds - before[1])
        return f"{speed:.0f}" if speed < 1e7 else f"{speed:.1e}"

    def _remaining(self, step: int, now: float) -> str:
        done = step - self.first_step
        return duration((now - self.began) / done * (self.last_step - step)) if done > 0 else "-"


def _header(columns: list[Column]) -> str:
    titles = "".join(f"{column.title:>10}" for column in columns)
    return f"{'step':>7}{'epoch':>8}{titles}{'tokens/s':>10}{'ETA':>10}"


def _any(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else escaped(str(value))


class LogLines(ProgressCallback):
    """Prints the lines of :class:`Lines` on the first process, beside transformers' progress bar."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: Lines | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not args.disable_tqdm:
            super().on_train_begin(args, state, control, **kwargs)
        begun = {"step": state.global_step, "tokens": state.num_input_tokens_seen, "last_step": state.max_steps}
        self.lines = Lines(**begun, now=time.monotonic())

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.training_bar is not None:
            super().on_step_end(args, state, control, **kwargs)

    def on_prediction_step(self, args: Any, state: Any, control: Any, *given: Any, **kwargs: Any) -> None:
        if not args.disable_tqdm:
            super().on_prediction_step(args, state, control, *given, **kwargs)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.training_bar is not None:
            super().on_train_end(args, state, control, **kwargs)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if not state.is_world_process_zero or self.lines is None:
            return
        lines = self.lines.of(state.global_step, logs or {}, time.monotonic())
        write_lines(
            styled(line, "bold" if "tokens/s" in line else "cyan" if " eval " in line else "") for line in lines
        )


def write_lines(lines: Iterable[str]) -> None:
    """Print lines beside a progress bar, at once also into a pipe or a file."""
    for line in lines:
        tqdm.write(line)
    if sys.stdout is not None:
        sys.stdout.flush()


def print_log_lines(trainer: Trainer) -> None:
    """Replace transformers' two callbacks that print log lines as dictionaries; leave one of a notebook."""
    for plain in (PrinterCallback, ProgressCallback):
        found = [callback for callback in trainer.callback_handler.callbacks if type(callback) is plain]
        for callback in found:
            trainer.remove_callback(callback)
            trainer.add_callback(LogLines())
