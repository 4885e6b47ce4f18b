"""Runs that a signal ends at a random moment, and that are resumed to the end."""

import random
import shutil
import signal
from functools import cached_property
from pathlib import Path
from typing import Any

from tests.faults.folders import contents, difference
from tests.faults.forked_runs import FORMS, HUNG, Ended, arguments, forked, name_of
from tests.faults.outcome import Fault, Outcome

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
ENDS = {signal.SIGKILL: (-9,), signal.SIGTERM: (-15, 0), signal.SIGINT: (-2, 130)}
"""Statuses with which a run may end after a signal; 0 too if it came after the last step."""

TRACEBACK = "Traceback (most recent call last)"


class Kills:
    """Kills of the runs of :data:`FORMS`.

    Args:
        here: folder with the runs' inputs.
    """

    def __init__(self, here: Path) -> None:
        self.here = here

    @cached_property
    def whole(self) -> dict[str, tuple[dict[str, Any], float]]:
        """By form: the contents of an uninterrupted run's folder, and its CPU seconds."""
        found = {}
        for form in FORMS:
            folder = self.here / f"whole-{name_of(form)}"
            ended = forked(self.here, arguments(form, folder.name))
            assert ended.status == 0, ended.said
            found[form] = contents(folder), ended.seconds
        return found

    def __call__(self, seed: int) -> Fault:
        """Kill a run once or twice, and resume it."""
        draw = random.Random(seed)
        form, sent, times = draw.choice(list(FORMS)), draw.choice(SIGNALS), draw.choice((1, 1, 1, 2))
        whole, seconds = self.whole[form]
        folder = self.here / f"killed-{seed}"
        command, said, moments = arguments(form, folder.name), "", []
        try:
            for _ in range(times):
                moments.append(draw.uniform(0, seconds))
                ended = forked(self.here, command, (sent, moments[-1]))
                outcome, said = self._after_kill(sent, ended)
                if outcome is not None:
                    break
            else:
                outcome, said = self._after_resume(forked(self.here, command), folder, whole)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        at = " and ".join(f"{moment:.3f}" for moment in moments)
        return Fault("kill", seed, f"{sent.name}, {form}", outcome, f"at {at} of {seconds:.3f} s: {said}")

    def _after_kill(self, sent: signal.Signals, ended: Ended) -> tuple[Outcome | None, str]:
        """Return what is wrong about the way in which a run ended; no outcome if nothing is."""
        if ended.status == HUNG:
            return Outcome.LOST, f"it hangs after {sent.name}"
        if TRACEBACK in ended.said:
            return Outcome.TRACEBACK, ended.err[-1500:]
        if ended.status not in (*ENDS[sent], 0):
            return Outcome.TRACEBACK, f"status {ended.status}: {ended.err[-1500:]}"
        return None, ""

    def _after_resume(self, ended: Ended, folder: Path, whole: dict[str, Any]) -> tuple[Outcome, str]:
        if TRACEBACK in ended.said:
            return Outcome.TRACEBACK, ended.err[-1500:]
        if ended.status:
            return Outcome.LOST, f"status {ended.status}: {ended.err[-1500:]}"
        differs = difference(contents(folder), whole)
        return (Outcome.SILENT if differs else Outcome.HARMLESS), differs
