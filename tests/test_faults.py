"""Kills, damaged files and calls with random arguments: nothing is lost, and nothing is silent.

A sample of what ``python -m tests.faults --kills 1000 --damage 1000 --calls 10000`` tries; docs/reliability.md has its
counts. A failure names its seed.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.__main__ import KINDS, workplace
from tests.faults.forked_runs import write_inputs
from tests.faults.function_calls import disagreement
from tests.faults.outcome import Count, Fault, Outcome, counted
from tests.faults.plain_losses import Bounded

SAMPLE = {"call": range(0, 200), "kill": range(0, 8), "damage": range(0, 16)}

forks = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="the runs are forked and awaited as on Linux")


@pytest.fixture(scope="module")
def here() -> Iterator[Path]:
    """A folder with the inputs of all runs."""
    folder = workplace()
    write_inputs(folder)
    yield folder
    shutil.rmtree(folder)


@forks
@pytest.mark.parametrize("kind", SAMPLE)
def test_no_fault_is_silent_and_none_loses_a_run_or_prints_a_traceback(here: Path, kind: str):
    fault = KINDS[kind](here)
    tried = [fault(seed) for seed in SAMPLE[kind]]
    wrong = [str(one) for one in tried if not one.right]
    assert not wrong, "\n".join(wrong)


def test_faults_are_counted_by_class_and_outcome():
    rows = counted("kill", [("b", Outcome.HARMLESS), ("a", Outcome.LOST), ("b", Outcome.REFUSED)])
    assert rows == [Count("kill", "a", 1, 0, 0, 0, 0, 1), Count("kill", "b", 2, 1, 1, 0, 0, 0)]
    assert [Fault("kill", 0, "a", outcome, "").right for outcome in Outcome] == [True, True, False, False, False]


def test_a_result_beyond_its_bound_is_reported():
    import torch

    one = torch.tensor([1.0, 2.0], dtype=torch.float64)
    assert disagreement(one + 3e-3, Bounded(one, torch.full_like(one, 1e-3))) == ""
    assert "the oracle has 1.0" in disagreement(one + 5e-3, Bounded(one, torch.full_like(one, 1e-3)))
    assert "shape [1]" in disagreement(one[:1], Bounded(one, torch.zeros_like(one)))
