"""The paper's claims: figures and verdicts of constructed results, and the page made of them."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.paper import ablation, budget, cadence, document, equal
from benchmarks.paper.catalogue import EXPERIMENTS
from benchmarks.paper.choosing import ADVICE, Advice
from benchmarks.paper.intervals import best_of_tuning, bootstrap, edges, gain, wins
from benchmarks.paper.run_rows import Run
from benchmarks.paper.short_answer import SENTENCES, Sentence
from benchmarks.results import read, write

SEEDS = range(800, 808)
BASE = Run("equal", "final", "", "plain", "dpo", 800, 1e-3, 0.1, 0.2, math.inf, None, None, 0.4, 0.5, 0.5)


def runs(arm: str, reward: float, objective: str = "dpo", phase: str = "final", **columns: object) -> list[Run]:
    """Return a row for each seed, whose rewards differ by up to .007 around ``reward``."""
    one = replace(BASE, arm=arm, objective=objective, phase=phase, **columns)
    spread = (-0.007, -0.005, -0.003, -0.001, 0.001, 0.003, 0.005, 0.007)
    steps, start = (0, 20), one.start
    return [
        replace(one, seed=seed, reward=reward + d, best=reward + d, steps=steps, rewards=(start, reward + d))
        for seed, d in zip(SEEDS, spread, strict=True)
    ]


def equal_rows(**rewards: tuple[float, float, float]) -> list[Run]:
    """Return final rows of plain, humanline and online, by objective."""
    rows = []
    for objective, values in rewards.items():
        for arm, reward in zip(equal.ARMS, values, strict=True):
            k = 50 if arm == "humanline" else None
            rows += runs(arm, reward, objective, sync_every=k)
            rows += runs(arm, reward, objective, phase="tuning", sync_every=k)
    return rows


def verdicts(rows: list[Run], experiment: object = equal.EXPERIMENT) -> list[str]:
    return [claim.verdict(rows) for claim in experiment.claims]  # type: ignore[attr-defined]


def test_a_gain_is_the_mean_of_differences_of_the_same_seed():
    rows = runs("plain", 0.5) + runs("humanline", 0.7)
    assert gain(rows, "humanline", "plain") == pytest.approx((0.2, 0.2, 0.2))
    assert wins(rows, "humanline", "plain") == "8/8"


def test_a_gain_over_runs_of_other_seeds_is_refused():
    rows = runs("plain", 0.5) + runs("humanline", 0.7)[:-1]
    with pytest.raises(ValueError, match="expected the same seeds for 'humanline' and 'plain'"):
        gain(rows, "humanline", "plain")


def test_five_seeds_are_too_few_for_a_bootstrap():
    with pytest.raises(ValueError, match="expected at least 6 seeds for a bootstrap, got 5"):
        bootstrap([0.1] * 5)


def test_the_interval_of_a_known_sample_has_the_width_of_its_standard_error():
    values = [0.0, 1.0] * 50
    interval = bootstrap(values)
    deviation = 0.5 / math.sqrt(len(values))
    assert interval.mean == 0.5
    # The quantiles of 10,000 means are themselves uncertain, by about 3 % of the width; the grid of means is 0.01.
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * deviation, abs=0.02)


def test_parity_and_a_gain_for_every_objective_hold():
    rows = equal_rows(dpo=(0.5, 0.8, 0.8), kto=(0.5, 0.8, 0.8), grpo=(0.5, 0.8, 0.8))
    assert verdicts(rows) == ["holds", "holds"]


def test_a_gain_for_one_objective_holds_only_for_it():
    rows = equal_rows(dpo=(0.5, 0.7, 0.8), kto=(0.5, 0.4, 0.4), grpo=(0.5, 0.4, 0.5))
    assert verdicts(rows) == ["holds only for DPO", "holds only in part: a gain for DPO; parity with online for KTO"]


def test_no_gain_anywhere_does_not_hold():
    rows = equal_rows(dpo=(0.5, 0.4, 0.4), kto=(0.5, 0.4, 0.4), grpo=(0.5, 0.4, 0.4))
    assert verdicts(rows)[0] == "does not hold"


def test_the_share_of_the_gap_is_a_ratio_of_gains():
    rows = equal_rows(dpo=(0.5, 0.65, 0.8), kto=(0.5, 0.5, 0.5), grpo=(0.4, 0.8, 0.8))
    text = equal.EXPERIMENT.claims[1].ours(rows)
    assert "DPO +0.150 [+0.150, +0.150], 50% of the gap" in text
    assert "KTO +0.000 [+0.000, +0.000], no gap" in text


def test_settings_above_a_reward_are_counted_by_their_means():
    rows = runs("plain", 0.79, phase="tuning", beta=1.0) + runs("plain", 0.81, phase="tuning", beta=8.0)
    assert equal.above(rows, "dpo", "plain", 0.8) == "1 of 2"


def test_the_best_arm_of_the_tuning_needs_all_its_seeds():
    full = runs("a", 0.6, phase="tuning")
    half = runs("b", 0.5, phase="tuning") + runs("b", 0.9, phase="tuning", beta=1.0)[:2]
    assert best_of_tuning(full + half, ["a", "b"]) == "a"


def ablation_rows(clamp: float, sync: float, both: float) -> list[Run]:
    rows = []
    for objective in ablation.OBJECTIVES:
        for arm in ablation.arms("dpo"):
            kind = arm.split(",")[0]
            reward = {"plain": 0.5, "clamp": clamp, "sync": sync, "both": both, "online": 0.9}[kind] + 0.01 * (
                arm == ablation.BOTH_ONLINE
            )
            for phase in ("tuning", "final"):
                rows += runs(arm, reward, objective, phase=phase)
    return rows


@pytest.mark.parametrize(
    ("clamp", "sync", "both", "verdict"),
    [
        (0.5, 0.8, 0.9, "holds"),
        (0.5, 0.6, 0.9, "does not hold"),
        (0.7, 0.8, 0.9, "does not hold"),
        (0.5, 0.8, 0.85, "does not hold"),
        (0.4, 0.5, 0.9, "does not hold"),
    ],
    ids=["all of it", "the sync gives a quarter", "the clamp gains too", "no parity", "no gain of the sync"],
)
def test_the_ablation_holds_only_if_each_of_its_parts_does(clamp: float, sync: float, both: float, verdict: str):
    assert verdicts(ablation_rows(clamp, sync, both), ablation.EXPERIMENT)[0] == verdict


def test_the_optimal_learning_rates_of_the_arms_are_compared():
    rows = [replace(r, learning_rate=1e-4) if r.arm == "clamp" else r for r in ablation_rows(0.6, 0.7, 0.8)]
    _, online, rates = verdicts(rows, ablation.EXPERIMENT)
    assert online == "holds"
    assert rates == "holds for DPO (0.1x to 1x of plain's), KTO (0.1x to 1x of plain's), GRPO (0.1x to 1x of plain's)"
    assert "plain 0.001, clamp 0.0001, sync, k = 1 0.001" in ablation.EXPERIMENT.claims[2].ours(rows)


def test_a_learning_rate_whose_optimum_is_plains_need_not_be_tuned_again():
    rows = [
        replace(r, learning_rate=1e-1) if (r.arm, r.objective) == ("clamp", "dpo") else r
        for r in ablation_rows(0.6, 0.7, 0.8)
    ]
    assert verdicts(rows, ablation.EXPERIMENT)[2] == "holds only for DPO (1x to 100x of plain's)"


def cadence_rows(one: float, middle: float, late: float) -> list[Run]:
    """Return rows of plain, whose reward is .5, and of k = 1, 16 and 128 with the paper's bounds."""
    rows = []
    for objective in cadence.OBJECTIVES:
        rows += runs("plain", 0.5, objective)
        for k, reward in ((1, one), (16, middle), (128, late)):
            for width in cadence.WIDTHS:
                for phase in ("tuning", "final"):
                    rows += runs(cadence.name(k, width), reward, objective, phase=phase, sync_every=k, width=width)
    return rows


@pytest.mark.parametrize(
    ("rewards", "verdict"),
    [
        ((0.3, 0.8, 0.7), "holds"),
        ((0.6, 0.7, 0.8), "does not hold"),
        (
            (0.3, 0.7, 0.8),
            "holds only in part: k = 1 is worse than plain for DPO, KTO, GRPO; "
            "k = 16 is as good as the best k for none",
        ),
    ],
    ids=["both parts", "neither", "the collapse alone"],
)
def test_a_cadence_is_good_only_if_no_other_is_better(rewards: tuple[float, float, float], verdict: str):
    assert verdicts(cadence_rows(*rewards), cadence.EXPERIMENT) == [verdict]


def test_a_choice_at_an_end_of_three_values_or_more_is_named():
    rows = runs("plain", 0.5, learning_rate=1e-3, beta=1.0)
    for rate in (1e-4, 3e-4, 1e-3):
        rows += runs("plain", 0.5, phase="tuning", learning_rate=rate, beta=1.0)
        rows += runs("plain", 0.4, phase="tuning", learning_rate=rate, beta=0.1)
    assert edges(rows) == ["DPO plain (lr 0.001)"]
    inside = [replace(row, learning_rate=3e-4) if row.phase == "final" else row for row in rows]
    assert edges(inside) == []


@pytest.mark.parametrize(("k", "nats"), [(None, 0.2), (100, 0.4), (50, 0.8), (25, 1.6), (1, 40.0)])
def test_the_budget_counts_the_syncs_after_the_first_step(k: int | None, nats: float):
    assert budget.trust(k, 0.2, steps=200) == pytest.approx(nats)


def test_a_reward_that_depends_on_the_budget_alone_is_explained_by_it():
    rows = []
    for k in budget.CADENCES:
        for width in (0.1, 0.2, 0.4, 0.8):
            nats = budget.trust(k, width, steps=200)
            row = replace(BASE, width=width, sync_every=k, reward=round(math.log2(nats)) / 10, steps=(0, 200))
            rows.append(row)
    assert budget.explained(rows, "dpo", "budget") == pytest.approx(1.0)
    assert budget.explained(rows, "dpo", "width") < 0.5
    assert budget.decides(rows, "dpo")


def test_a_reward_that_depends_on_k_alone_does_not_follow_the_budget():
    rows = [
        replace(BASE, width=width, sync_every=k, reward=0.1 * place, steps=(0, 200))
        for place, k in enumerate(budget.CADENCES)
        for width in (0.1, 0.2, 0.4, 0.8)
    ]
    assert budget.explained(rows, "dpo", "k") == pytest.approx(1.0)
    assert budget.explained(rows, "dpo", "width") < 0
    assert not budget.decides(rows, "dpo")


def test_a_section_has_text_picture_and_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(document, "FOLDER", tmp_path / "benchmarks/results/paper")
    monkeypatch.setattr(document, "ROOT", tmp_path)
    assert document.section(equal.EXPERIMENT) == "*Not run yet: `python -m benchmarks paper equal`.*"
    facts = {"machine": "a CPU", "torch": "2.13", "cpu_seconds": "7", "protocol": "abc"}
    rows = equal_rows(dpo=(0.5, 0.65, 0.8), kto=(0.5, 0.5, 0.5), grpo=(0.4, 0.8, 0.8))
    write(tmp_path / "benchmarks/results/paper/equal.csv", Run, facts, rows)
    text, picture, source = document.section(equal.EXPERIMENT).rsplit("\n\n", 2)
    assert "| DPO | 0.500" in text
    assert picture == "![Equal tuning](images/paper/equal.png)"
    assert "a CPU; torch 2.13; 7 CPU seconds; protocol `abc`" in source
    assert "[`equal`](#equal-tuning)" in document.claims()


@pytest.mark.parametrize("advice", ADVICE, ids=lambda advice: f"{advice.experiment}, {advice.setting}")
def test_the_committed_results_support_the_advice(advice: Advice):
    file = document.FOLDER / f"{advice.experiment}.csv"
    assert advice.holds(read(file, EXPERIMENTS[advice.experiment].kind)[1])


@pytest.mark.parametrize("sentence", SENTENCES, ids=lambda sentence: ", ".join(sentence.experiments))
def test_the_committed_results_support_the_sentences_of_the_readme(sentence: Sentence):
    results = {name: read(document.FOLDER / f"{name}.csv", EXPERIMENTS[name].kind)[1] for name in sentence.experiments}
    assert sentence.holds(results)
    assert sentence.text(results).format_map(dict.fromkeys(EXPERIMENTS, ""))


def test_a_summary_names_both_arms_before_it_says_it():
    rows = equal_rows(dpo=(0.5, 0.5, 0.8), kto=(0.5, 0.6, 0.8), grpo=(0.5, 0.6, 0.8))
    assert equal.summary(rows) == (
        "Humanline ends level with tuned plain training, as far as the seeds can show, with DPO; "
        "above it with KTO, GRPO."
    )


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_committed_results_are_those_of_the_protocol_in_the_code(name: str):
    experiment, file = EXPERIMENTS[name], document.FOLDER / f"{name}.csv"
    facts = read(file, experiment.kind)[0]
    assert facts["protocol"] == experiment.facts(experiment.protocol)["protocol"]
    assert facts["command"] == f"python -m benchmarks paper {name}"
    assert (document.IMAGES / f"{name}.png").is_file()
