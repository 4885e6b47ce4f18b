"""The paper's experiments: their rules, and the quick form of each."""

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.paper import command, predict
from benchmarks.paper.arms import humanline, plain, tuned_humanline, tuned_regularisation, varied
from benchmarks.paper.catalogue import EXPERIMENTS
from benchmarks.paper.experiment import Experiment
from benchmarks.paper.llama import ARMS
from benchmarks.paper.protocol import Comparison, Protocol, protocol_hash
from benchmarks.paper.run_rows import Run
from benchmarks.results import read, write
from humanline_fused.tiny import Setting, Trainings

QUICK = Protocol().quick()
TINY = [name for name, experiment in EXPERIMENTS.items() if issubclass(experiment.kind, Run)]
"""Experiments whose rows are trainings under a protocol."""


def compared(*settings: Setting, protocol: Protocol = QUICK) -> list[Run]:
    return Comparison("test", "", Trainings("dpo"), protocol).compare({"arm": list(settings)})


def quick(experiment: Experiment) -> Protocol:
    """Return the quick protocol with the fewest steps: one of this experiment's conditions has four epochs."""
    return replace(experiment.protocol.quick(), steps=4 if experiment.name == "beyond" else 2)


# Rules


def test_no_setting_is_tuned_with_a_final_seed():
    with pytest.raises(ValueError, match=r"expected final seeds that no setting is tuned with, got \[900\] in both"):
        Protocol(final=(800, 900))
    usual = Protocol()
    assert not {*usual.first, *usual.second} & {*usual.final}
    assert len({*usual.first, *usual.second}) >= 6
    assert Protocol().with_seeds(7).final == usual.final[:7]


def test_the_hash_changes_with_every_rule_and_setting():
    usual, setting = Protocol(), plain("dpo")
    hashes = {
        protocol_hash(usual, setting),
        protocol_hash(replace(usual, survivors=9), setting),
        protocol_hash(usual.with_seeds(8), setting),
        protocol_hash(usual, replace(setting, learning_rate=2e-3)),
        protocol_hash(usual, replace(setting, sync_every=2)),
    }
    assert len(hashes) == 5
    assert protocol_hash(Protocol(), plain("dpo")) in hashes


def test_the_head_of_the_results_has_the_hash_of_what_was_run():
    experiment = EXPERIMENTS["equal"]
    assert experiment.facts(experiment.protocol) != experiment.facts(experiment.protocol.with_seeds(7))


@pytest.mark.parametrize("loss", ["dpo", "kto", "grpo"])
def test_plain_and_humanline_are_tuned_over_48_different_settings(loss):
    for settings in (tuned_regularisation(plain(loss), loss), tuned_humanline(loss)):
        assert len(set(settings)) == len(settings) == 48


def test_arms_with_different_numbers_of_settings_are_refused():
    with pytest.raises(ValueError, match=r"expected the same number of settings for every arm, got \{'a': 1, 'b': 2\}"):
        Comparison("test", "", Trainings("dpo"), QUICK).compare({"a": [plain("dpo")], "b": [plain("dpo")] * 2})


def test_tuning_chooses_the_setting_with_the_highest_mean_reward():
    none, good, harmful = varied(Setting("x", resample_every=1), learning_rate=(1e-9, 0.01, 10.0))
    protocol = replace(QUICK, first=(900, 901), second=(902,), survivors=2, steps=20)
    rows = compared(none, good, harmful, protocol=protocol)
    final = [row for row in rows if row.phase == "final"]
    assert {row.learning_rate for row in final} == {0.01}
    assert sorted(row.seed for row in final) == list(protocol.final)
    tuned = Counter(row.learning_rate for row in rows if row.phase == "tuning")
    assert tuned == {0.01: 3, 1e-9: 3, 10.0: 2}, "two survivors see the second seeds"


def test_a_single_setting_needs_no_tuning():
    assert {row.phase for row in compared(humanline(2))} == {"final"}


def test_a_row_says_what_was_trained():
    row = compared(replace(humanline(2, 0.5), learning_rate=2e-3))[0]
    assert (row.experiment, row.arm, row.objective, row.seed) == ("test", "arm", "dpo", 800)
    assert (row.learning_rate, row.width, row.sync_every, row.resample_every) == (2e-3, 0.5, 2, None)
    assert row.rewards == (row.start, row.reward)
    assert row.steps == (0, QUICK.steps)
    assert row.best == max(row.rewards)
    assert row.words == "lr 0.002, β 0.1, ±0.5, k = 2"


# Experiments


@pytest.fixture(scope="module")
def quick_rows():
    kept: dict[str, list] = {}

    def rows(name: str) -> list:
        if name == "predict":
            return predict.points(rows("quality"))
        if name not in kept:
            experiment = EXPERIMENTS[name]
            kept[name] = experiment.run(quick(experiment))
        return kept[name]

    return rows


@pytest.mark.parametrize("name", [*TINY, "predict"])
def test_an_experiment_runs_writes_its_results_and_says_what_they_are(name, quick_rows, tmp_path: Path):
    experiment, rows = EXPERIMENTS[name], quick_rows(name)
    file, image = tmp_path / f"{name}.csv", tmp_path / f"{name}.png"
    write(file, experiment.kind, experiment.facts(experiment.protocol), rows)
    facts, again = read(file, experiment.kind)
    assert again == rows
    assert facts["protocol"] == protocol_hash(experiment.protocol, experiment.name, experiment.arms)
    experiment.figure(again, image)
    assert image.read_bytes().startswith(b"\x89PNG")
    text = experiment.paragraph(again)
    assert f"{len(rows)} runs" in text or name not in TINY
    for claim in experiment.claims:
        assert claim.ours(again)
        assert claim.verdict(again).startswith(("holds", "does not hold", "no difference"))


@pytest.mark.parametrize("name", TINY)
def test_every_arm_of_an_experiment_has_the_same_final_seeds_and_budget(name, quick_rows):
    rows, protocol = quick_rows(name), quick(EXPERIMENTS[name])
    seeds: dict[tuple, list[int]] = {}
    tuning: dict[tuple, dict[str, int]] = {}
    for row in rows:
        group = (row.objective, row.condition)
        assert math.isfinite(row.reward)
        if row.phase == "final":
            seeds.setdefault((*group, row.arm, row.setting), []).append(row.seed)
        else:
            counts = tuning.setdefault(group, {})
            counts[row.arm] = counts.get(row.arm, 0) + 1
    assert all(sorted(found) == list(protocol.final) for found in seeds.values())
    assert all(len(set(counts.values())) == 1 for counts in tuning.values())


def test_an_experiment_gives_the_same_rows_twice(quick_rows):
    def measured(rows: list[Run]) -> list[Run]:
        return [replace(row, cpu_seconds=None) for row in rows]

    experiment = EXPERIMENTS["stale"]
    assert measured(experiment.run(quick(experiment))) == measured(quick_rows("stale"))


def test_the_command_writes_and_prints_its_quick_form(quick_rows, tmp_path: Path, monkeypatch, capsys):
    rows = quick_rows("llama")
    assert {(row.arm, row.seed) for row in rows} == {(arm, seed) for arm in ARMS for seed in QUICK.final}
    assert all(len(row.steps) == len(row.rewards) for row in rows)
    monkeypatch.setitem(EXPERIMENTS, "llama", replace(EXPERIMENTS["llama"], run=lambda protocol: rows))
    command.main(["llama", "--quick", "--output_dir", str(tmp_path)])
    assert read(tmp_path / "llama.csv", Run)[1] == rows
    assert (tmp_path / "llama.png").is_file()
    assert "| GRPO |" in capsys.readouterr().out


# What predicts the gain


def points(part: str, *values: tuple[float, float]) -> list[predict.Point]:
    """Return points with given KL and gain; every other variable is the same for all."""
    same = dict.fromkeys((*predict.VARIABLES, "plain"), 0.5)
    made = [{**same, "data_kl": kl, "gain": gain} for kl, gain in values]
    return [predict.Point(part, str(number), **one) for number, one in enumerate(made)]


def test_a_rank_correlation_is_that_of_the_ranks_with_means_for_equal_values():
    assert predict.rank_correlation([1, 2, 3, 4], [1, 10, 100, 1000]) == pytest.approx(1)
    assert predict.rank_correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert predict.rank_correlation([1, 1, 2, 2], [1, 2, 1, 2]) == pytest.approx(0)
    assert predict.rank_correlation([1, 1, 2], [1, 2, 3]) == pytest.approx(math.sqrt(3) / 2)
    assert predict.rank_correlation([1, 1, 1], [1, 2, 3]) == 0


def test_a_variable_that_orders_the_gain_everywhere_predicts_it():
    line = [(x / 8, x / 8 - 0.5) for x in range(1, 9)]
    rows = points(predict.FIT, *line) + points("other", *line[::2])
    found = predict.strongest(rows, "gain")
    assert (found.variable, found.correlation) == ("data_kl", pytest.approx(1))
    # Of 8! orders two correlate perfectly, so the chance is 5e-5: at most a few of 10,000 random orders.
    assert found.chance <= 5e-5 + 5 * math.sqrt(5e-5 / predict.PERMUTATIONS)
    judged = predict.judge(found, predict.part(rows, "other"))
    assert (judged.correlation, judged.explained, judged.hits) == (pytest.approx(1), pytest.approx(1), "4 of 4")
    assert predict.predicts(found, rows)


def test_a_variable_whose_order_turns_round_elsewhere_does_not_predict():
    line = [(x / 8, x / 8 - 0.5) for x in range(1, 9)]
    rows = points(predict.FIT, *line) + points("other", *((x, -gain) for x, gain in line))
    found = predict.strongest(rows, "gain")
    assert not predict.predicts(found, rows)
    assert "`data_kl` does not predict humanline's gain" in predict.paragraph(rows)
