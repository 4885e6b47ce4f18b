"""The experiment on the sign of a drifting reference: when a run has lost, when the sign fires, the counts."""

from dataclasses import replace
from typing import Any

import pytest

from benchmarks.paper.drift import EXPERIMENT, DriftRun, counted, drift_of, fires_at, lost_at, paragraph


def a_run(fired: int | None, lost: int | None, k: int | None = 1, arm: str = "k = 1", **fields: Any) -> DriftRun:
    words: dict[str, Any] = {"experiment": "drift", "phase": "final", "condition": "", "objective": "grpo", "seed": 0}
    numbers = {"learning_rate": 1e-3, "beta": 0.1, "epsilon": 0.2, "width": 1.5, "resample_every": None}
    rewards = {"start": 0.4, "reward": 0.5, "best": 0.6, "steps": (0, 5, 10), "rewards": (0.4, 0.6, 0.5)}
    surpluses = (0.0, 0.5)
    given = words | numbers | rewards | {"arm": arm, "sync_every": k} | fields
    return DriftRun(**given, fired=fired, lost=lost, surpluses=surpluses)


@pytest.mark.parametrize(
    ("rewards", "step"),
    [
        ([0.4, 0.6, 0.585, 0.575], 30),  # a tenth of a gain of .2
        ([0.4, 0.5, 0.6, 0.6], None),
        ([0.4, 0.3, 0.2, 0.1], None),  # nothing was gained
        ([0.4, 0.41, 0.3, 0.1], None),  # nor here, within the noise
        ([0.4, 0.5, 0.3, 0.6], None),  # a dip on the way to the best
    ],
)
def test_a_run_has_lost_when_its_reward_is_a_tenth_of_the_gain_below_the_best(rewards: list[float], step: int | None):
    assert lost_at([0, 10, 20, 30], rewards) == step


def test_the_sign_fires_at_the_first_line_that_suffices():
    rising = [0.0] * 20 + [0.1 * step for step in range(10)]
    fired = fires_at(rising)
    assert fired is not None
    assert 20 < fired < 28
    assert fires_at(rising[: fired - 1]) is None
    assert fires_at([0.0] * 30) is None


def test_the_drift_fires_the_sign_while_the_reference_stands_still():
    rising = [0.02 * step for step in range(20)]
    assert fires_at([0.0] * 20, rising) == 10
    assert fires_at([0.0] * 20, [value / 2 for value in rising]) == 12


def test_the_drift_adds_up_what_each_reference_lost():
    """k = 2: steps 1 and 2 have the policy of step 0 as their reference, 3 and 4 that of step 2."""
    logp, ref_logp = [-1.0, -2.5, -3.0, -4.0, -3.0], [-1.0, -2.0, -2.0, -3.5, -2.75]
    assert drift_of(logp, ref_logp, k=2) == [0.0, 0.5, 1.0, 1.5, 1.25]


def test_outcomes_are_relative_to_the_loss():
    outcomes = {(7, 10): "in time", (10, 10): "in time", (11, 10): "late", (None, 10): "never", (7, None): "early"}
    for (fired, lost), outcome in outcomes.items():
        assert a_run(fired, lost).outcome == outcome
    assert a_run(None, None).outcome == "silent"


def test_outcomes_are_counted_by_the_fields_asked_for():
    rows = [a_run(7, 10), a_run(7, 10, k=4), a_run(12, 10)]
    assert counted(rows, "in time") == 2
    assert counted(rows, "in time", "late", sync_every=1) == 2


def test_the_text_begins_with_false_alarms_and_misses():
    frozen = [a_run(None, None, k=None, arm=arm) for arm in ("plain", "online")]
    rows = [a_run(7, 10), a_run(12, 10), a_run(None, 10), a_run(9, None), *frozen, replace(frozen[1], fired=12)]
    text = paragraph(rows)
    first, second, third, fourth, *_ = text.splitlines()
    assert first.startswith("- Of 1 synced runs that never lost a tenth of their gain, the sign fired on 1")
    lost = "- Of 3 synced runs that lost a tenth of their gain, it fired too late on 1, never on 1, in time on 1, "
    lost += "3 to 3 steps before (median 3)."
    assert second.startswith(lost)
    assert third.startswith("- On plain offline runs it stays silent on all 1, though 0 of them lost a tenth")
    assert fourth.startswith("- On online runs it fires on 1 of 2 (GRPO)")
    assert "| GRPO | 1 | 1 | 1 | 1 | 1 | 0 | 0.50 (0.50 to 0.50) |" in text


def test_a_quick_form_has_plain_online_and_a_synced_arm_for_every_objective():
    rows = EXPERIMENT.run(EXPERIMENT.protocol.quick())
    assert {(row.objective, row.arm) for row in rows} == {
        (objective, arm) for objective in ("grpo", "dpo", "kto") for arm in ("plain", "online", "k = 1")
    }
    assert all(len(row.surpluses) == 1 for row in rows)
