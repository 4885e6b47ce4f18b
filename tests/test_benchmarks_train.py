"""``python -m benchmarks train``: whole trainers beside each other, at toy size."""

from dataclasses import fields, replace

import pytest
import torch

from benchmarks import report
from benchmarks.__main__ import main
from benchmarks.measure import PeakMemory
from benchmarks.results import read, write
from benchmarks.training.answers import WRONG, checked
from benchmarks.training.runs import Run, summaries
from benchmarks.training.runs_table import judged
from benchmarks.training.setting import SETTINGS, TOY, tokens_of
from benchmarks.training.variants import COPY, HALOS, LOOKAHEAD, PLAIN, SYNCED_TRL, VARIANTS, Variant
from benchmarks.training.worker import train
from tests.forked import forked

CPU = torch.device("cpu")
TIMED = 2


def variant_of(key: str) -> Variant:
    return next(variant for variant in VARIANTS if variant.key == key)


@pytest.fixture(scope="module")
def trained() -> dict[str, Run]:
    """A run of every variant that needs nothing installed, by its name."""
    measured = [train(variant_of(key), TOY, CPU, TIMED) for key in ("plain", "copy", "lookahead", "halos")]
    return {run.variant: run for run in measured}


def run_of(variant: str, seconds: list[float], turn: int = 0, **figures) -> Run:
    weights = {"weights_mib": 400.0, "tokens": [100] * len(seconds)}
    return Run(variant, turn, "cpu", "float32", 2, 64, 32000, seconds=seconds, **weights | figures)


def test_every_timed_step_has_its_seconds_and_tokens_and_every_step_its_answers(trained):
    steps = TOY.warm_up + TIMED
    for run in trained.values():
        assert not run.note
        assert len(run.seconds) == len(run.cpu_seconds) == len(run.tokens) == TIMED
        assert all(second > 0 for second in run.seconds)
        assert len(run.loss) == len(run.grad_norm) == len(run.logps_chosen) == len(run.logps_rejected) == steps
        assert run.weights_mib == pytest.approx(sum(p.nbytes for p in TOY.model(CPU).parameters()) / 2**20)


def test_the_variants_give_the_same_answers_as_far_as_they_mean_to(trained):
    assert [run.note for run in checked(list(trained.values()), bitwise=True)] == [""] * 4
    copy, ahead, plain, halos = (trained[name] for name in (COPY, LOOKAHEAD, PLAIN, HALOS))
    assert (ahead.loss, ahead.grad_norm) == (copy.loss, copy.grad_norm)
    assert plain.loss[:2] == copy.loss[:2]
    assert plain.loss[2] != copy.loss[2]
    assert halos.loss == pytest.approx(copy.loss, rel=1e-5)


@pytest.mark.parametrize(
    ("key", "setting"),
    [
        ("plain", replace(TOY, learning_rate=1.01 * TOY.learning_rate)),
        ("halos", replace(TOY, learning_rate=1.01 * TOY.learning_rate)),
        ("lookahead", replace(TOY, learning_rate=(1 + 1e-6) * TOY.learning_rate)),
    ],
)
def test_a_variant_that_trains_otherwise_keeps_no_figures(trained, key, setting):
    stub = train(variant_of(key), setting, CPU, TIMED)
    _, judged = checked([trained[COPY], stub], bitwise=True)
    assert judged.note.startswith(WRONG)
    assert judged.seconds == judged.cpu_seconds == judged.tokens == []
    assert judged.peak_mib == 0


def test_trl_is_compared_as_long_as_its_reference_is_humanline_s(trained):
    copy = trained[COPY]
    late = replace(copy, variant=SYNCED_TRL, loss=[copy.loss[0], 9.0, 9.0, 9.0])
    other = {"grad_norm": [2 * copy.grad_norm[0]] * 4, "logps_chosen": [*copy.logps_chosen[:1], 1.0, 1.0, 1.0]}
    notes = [run.note for run in checked([copy, replace(late, grad_norm=copy.grad_norm)], bitwise=True)]
    assert notes == ["", ""]
    for name, values in other.items():
        assert name in checked([copy, replace(late, **{name: values})], bitwise=True)[1].note


def test_a_variant_that_fails_says_why():
    def build(*_):
        raise RuntimeError("no room for it")

    run = train(replace(variant_of("plain"), build=build), TOY, CPU, TIMED)
    assert run.note == "RuntimeError: no room for it"
    assert not run.seconds


def peak_of_400_mib() -> float:
    earlier = torch.ones(300 * 2**18)
    del earlier
    kept = torch.ones(100 * 2**18)
    peak = PeakMemory(CPU)
    held = torch.ones(4 * len(kept))
    del held
    return peak.mib()


def test_peak_memory_counts_what_is_held_and_let_go_and_not_what_was_there_before():
    # The peak of a fork begins with what is resident then; that of this process may be of an earlier test.
    assert forked(peak_of_400_mib) == pytest.approx(400, abs=20)


def test_the_tokens_of_a_step_are_those_of_its_sequences_and_none_is_cut():
    tokenizer, records = TOY.tokenizer(), TOY.records(3)
    lengths = [
        len(tokenizer(f"{record['prompt']}{record[side]}<eos>")["input_ids"])
        for record in records
        for side in ("chosen", "rejected")
    ]
    assert max(lengths) <= TOY.lengths.longest
    assert min(lengths) >= TOY.lengths.longest / 2
    assert sum(map(tokens_of, TOY.steps_of(records))) == sum(lengths)


def test_the_largest_setting_fills_every_sequence():
    large = SETTINGS["1.5b"]
    assert {tokens_of(step) for step in large.steps_of(large.records(large.warm_up + 1))} == {
        2 * large.examples * large.lengths.longest
    }


def test_runs_are_read_back_as_they_were_written(tmp_path, trained):
    facts = {"machine": "one: with a colon"}
    peak = replace(trained[COPY], peak_mib=12.5)  # so small a model may fit in what this process has resident already
    written = [peak, replace(trained[PLAIN], turn=1, note="another, with a comma")]
    write(tmp_path / "runs.csv", Run, facts, written)
    assert read(tmp_path / "runs.csv", Run) == (facts, written)
    assert all(getattr(written[0], field.name) not in ([], 0.0) for field in fields(Run) if field.name not in ("turn",))


def test_time_over_plain_is_that_of_the_same_step_undisturbed():
    measured = [
        run_of(PLAIN, [1.0, 5.0]),
        run_of(LOOKAHEAD, [1.1, 2.2]),
        run_of(PLAIN, [4.0, 2.0], turn=1),
        run_of(LOOKAHEAD, [11.0, 22.0], turn=1),
    ]
    plain, ahead = summaries(measured, PLAIN)
    assert plain.over_plain == (1.0, 1.0, 1.0)
    assert ahead.over_plain == pytest.approx((1.1, 1.1, 1.1))
    assert ahead.tokens_per_s == pytest.approx(400 / 36.3)
    disturbed = replace(measured[1], seconds=[7.0, 7.0], cpu_seconds=[1.0, 2.0])
    assert summaries([measured[0], disturbed], PLAIN)[1].over_plain == pytest.approx((0.52, 0.7, 0.88))


def test_goals_are_judged_by_the_summaries():
    seconds, peaks = [2.0, 2.0], {PLAIN: 2000.0, COPY: 2000.0, LOOKAHEAD: 1600.0, SYNCED_TRL: 5000.0}
    times = {PLAIN: seconds, COPY: [2.1, 2.1], LOOKAHEAD: [2.02, 2.02], SYNCED_TRL: [2.2, 2.2]}
    measured = [run_of(name, times[name], peak_mib=peak) for name, peak in peaks.items()]
    lines = judged(summaries(measured, PLAIN), on_gpu=True)
    assert [(line["measured"], line[""]) for line in lines] == [
        ("+1.0%", "met"),
        ("+5.0%", "missed"),
        ("1.00", "met"),
        ("1.09", "missed"),
        ("3400", "met"),
    ]
    assert {line[""] for line in judged([], on_gpu=True)} == {"not measured"}


def test_the_command_runs_a_process_for_each_variant_and_takes_up_its_file(tmp_path, capsys, monkeypatch):
    file = tmp_path / "one-training.csv"
    asked = ["train", "--model", "toy", "--device", "cpu", "--turns", "1", "--steps", "2", "--csv", str(file)]
    main([*asked, "--variants", "lookahead"])
    facts, (run,) = read(file, Run)
    assert (run.variant, run.turn, run.note) == (LOOKAHEAD, 0, "")
    assert {"machine", "torch", "transformers", "commit", "command", LOOKAHEAD} <= set(facts)
    assert LOOKAHEAD in report.table(file, [])
    monkeypatch.setattr("benchmarks.training.train.Plan.in_a_process", None)
    main([*asked, "--variants", "lookahead"])
    assert read(file, Run)[1] == [run]
    assert "No goal is judged" in capsys.readouterr().out
