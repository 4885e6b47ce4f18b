"""Plots of several runs: choice of curves and clock, and messages about missing curves."""

import errno
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from humanline_fused.cli import main
from humanline_fused.looking import plot
from humanline_fused.looking.curves import read_metrics, series
from humanline_fused.looking.pictures import Panel, draw, style_of
from humanline_fused.looking.plot import labels_of, plot_runs
from tests.tiny_model import records, trained


def run_of(folder: Path, *lines: dict[str, Any]) -> Path:
    """Make a run's folder with these log lines, one second and one step apart."""
    folder.mkdir(parents=True)
    numbered = [{"step": i, "seconds": float(i), **line} for i, line in enumerate(lines)]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in numbered))
    return folder


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Sequence[Panel]]:
    """Collects the rows that would be drawn."""
    rows: list[Sequence[Panel]] = []
    monkeypatch.setattr(plot, "draw", lambda panels, *_, **__: rows.extend(panels))
    return rows


def test_a_metric_is_drawn_by_steps_and_by_seconds_for_every_run(tmp_path: Path, drawn: list[Sequence[Panel]]) -> None:
    first = run_of(tmp_path / "a", {"reward": 0.1}, {"loss": 1.0}, {"reward": 0.3})
    second = run_of(tmp_path / "b", {"loss": 1.0}, {"reward": 0.2, "seconds": 5.0})
    plot_runs([first, second], tmp_path / "plot.png")
    ((steps, seconds),) = drawn
    assert steps.curves == {"a": ([0, 2], [0.1, 0.3]), "b": ([1], [0.2])}
    assert seconds.curves == {"a": ([0.0, 2.0], [0.1, 0.3]), "b": ([5.0], [0.2])}
    assert (steps.x, seconds.x) == ("optimizer steps", "seconds, evaluation included")


def test_the_clock_excludes_evaluation_if_every_run_logs_working_time(
    tmp_path: Path, drawn: list[Sequence[Panel]]
) -> None:
    work = {"time/training": 2.0, "time/generation": 0.5}
    later = {"time/training": 3.0, "time/reward": 0.25}
    run = run_of(tmp_path / "a", {"reward": 0.1, **work}, {"eval_reward": 0.2}, {"reward": 0.3, **later})
    slow = run_of(tmp_path / "b", {"loss": 1.0}, {"reward": 0.4, "time/training": 9.0})
    plot_runs([run, slow], tmp_path / "plot.png")
    evaluated, rewarded = drawn
    assert evaluated[1].curves == {"a": ([2.5], [0.2])}
    assert rewarded[1].curves == {"a": ([2.5, 3.75], [0.1, 0.3]), "b": ([9.0], [0.4])}
    assert rewarded[1].x == "seconds, without evaluation and saving"
    drawn.clear()
    plot_runs([run, run_of(tmp_path / "c", {"reward": 0.2}, {"seconds": 7.0, "reward": 0.2})], tmp_path / "plot.png")
    assert drawn[-1][1].curves["a"] == ([0.0, 2.0], [0.1, 0.3])


def test_seconds_are_drawn_only_where_the_runs_differ_in_pace(tmp_path: Path, drawn: list[Sequence[Panel]]) -> None:
    lines = {"reward": 0.1}, {"reward": 0.2}
    first, second = (run_of(tmp_path / name, *lines) for name in "ab")
    said = plot_runs([first, second], tmp_path / "plot.png")
    assert "left out, the same as over steps: seconds" in said
    plot_runs([first], tmp_path / "plot.png")
    assert [[panel.x for panel in row] for row in drawn] == [["optimizer steps"], ["optimizer steps"]]


def test_the_margin_against_the_initial_policy_is_preferred_and_names_runs_that_lack_it(
    tmp_path: Path, drawn: list[Sequence[Panel]]
) -> None:
    both = {"eval_rewards_initial/margins": 2.0, "rewards/margins": 0.5}
    first, second = run_of(tmp_path / "a", both), run_of(tmp_path / "b", {"rewards/margins": 0.25})
    plot_runs([first, second], tmp_path / "plot.png")
    ((panel,),) = drawn
    assert panel.curves == {"a": ([0], [2.0])}
    assert panel.note == "no value from: b"
    drawn.clear()
    plot_runs([second], tmp_path / "plot.png")
    assert [row[0].curves for row in drawn] == [{"b": ([0], [0.25])}]


@pytest.mark.parametrize("key", ["rewards/margins", "humanline/unclamped", "humanline/surplus"])
def test_a_moving_and_a_frozen_reference_never_share_an_axis(
    tmp_path: Path, drawn: list[Sequence[Panel]], key: str
) -> None:
    runs = [run_of(tmp_path / name, {key: 0.2}, {key: 0.3}) for name in ("ahead", "copy", "frozen", "unknown")]
    for run, reference in zip(runs, ("lookahead", "copy", "frozen"), strict=False):
        (run / "settings.json").write_text(json.dumps({"reference": reference}))
    plot_runs(runs, tmp_path / "plot.png")
    assert [set(row[0].curves) for row in drawn] == [{"ahead", "copy"}, {"frozen"}, {"unknown"}]
    titles = [row[0].title for row in drawn]
    assert all(words in title for words, title in zip(("a moving", "the frozen", "of each step"), titles, strict=True))
    assert drawn[1][0].note == "other reference, own row: ahead, copy, unknown"


def test_metrics_against_the_initial_policy_share_an_axis_whatever_the_reference(
    tmp_path: Path, drawn: list[Sequence[Panel]]
) -> None:
    runs = [run_of(tmp_path / name, {"eval_rewards_initial/margins": 0.2}) for name in ("copy", "frozen")]
    for run in runs:
        (run / "settings.json").write_text(json.dumps({"reference": run.name}))
    plot_runs(runs, tmp_path / "plot.png")
    assert [set(row[0].curves) for row in drawn] == [{"copy", "frozen"}]


@pytest.mark.parametrize("text", ["", "[1]", '{"reference": 3}', "\xff", "[" * 100_000])
def test_a_run_without_readable_settings_has_a_reference_of_no_kind(tmp_path: Path, text: str) -> None:
    (tmp_path / "settings.json").write_text(text, encoding="latin-1")
    assert plot.reference_of(tmp_path) == ""
    assert plot.reference_of(tmp_path / "absent") == ""


def test_a_value_that_never_differs_has_no_panel_beside_one_that_does(
    tmp_path: Path, drawn: list[Sequence[Panel]]
) -> None:
    lines = [{"humanline/unclamped": 1.0, "reward": 0.1 * i} for i in range(3)]
    said = plot_runs([run_of(tmp_path / "a", *lines)], tmp_path / "plot.png")
    assert [row[0].curves["a"][1] for row in drawn] == [[0.0, 0.1, 0.2]]
    assert "left out, 1 throughout: humanline/unclamped" in said


def test_a_panel_without_some_runs_says_so_in_the_picture(tmp_path: Path) -> None:
    first, second = run_of(tmp_path / "a", {"reward": 0.1}), run_of(tmp_path / "b", {"eval_kl_initial": 0.2})
    plot_runs([first, second], tmp_path / "plot.svg")
    svg = (tmp_path / "plot.svg").read_text()
    assert "no value from: b" in svg  # matplotlib writes a text as paths, and as a comment beside them
    assert "no value from: a" in svg


def test_a_picture_that_cannot_be_finished_leaves_the_former_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def print_png(canvas: FigureCanvasAgg, file: IO[bytes], **settings: object) -> None:
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    run, image = run_of(tmp_path / "a", {"reward": 0.1}, {"reward": 0.2}), tmp_path / "plot.png"
    image.write_bytes(b"former")
    monkeypatch.setattr(FigureCanvasAgg, "print_png", print_png)
    with pytest.raises(OSError, match="No space left"):
        plot_runs([run], image)
    assert image.read_bytes() == b"former"
    assert {path.name for path in tmp_path.iterdir()} == {"a", "plot.png"}


def test_a_panel_names_at_most_four_missing_runs_and_its_lines_are_short() -> None:
    assert max(map(len, plot.listed("no value from", ["a" * 200, "b" * 30]).splitlines())) <= plot.LETTERS
    assert plot.listed("no value from", list("abcdef")) == "no value from: a, b, c, d and 2 more"


def test_missing_quantities_are_reported_for_all_runs_and_for_single_runs(
    tmp_path: Path, drawn: list[Sequence[Panel]]
) -> None:
    first, second = run_of(tmp_path / "a", {"eval_kl_initial": 0.1}), run_of(tmp_path / "b", {"humanline/unclamped": 1})
    assert plot_runs([first, second], tmp_path / "plot.png") == [
        "left out, no run logged it: reward (heldout/reward, eval_reward, reward)",
        "left out, no run logged it: margin (eval_rewards_initial/margins, rewards/margins)",
        "humanline/unclamped is not in a",
        "eval_kl_initial is not in b",
        "left out, no run logged it: surplus surprisal (humanline/surplus)",
        "left out, the same as over steps: seconds",
        str(tmp_path / "plot.png"),
    ]
    assert len(drawn) == 2


def test_a_value_that_is_not_finite_gives_no_point(tmp_path: Path, drawn: list[Sequence[Panel]]) -> None:
    plot_runs([run_of(tmp_path / "a", {"reward": None}, {"reward": 0.5})], tmp_path / "plot.png")
    assert drawn[0][0].curves == {"a": ([1], [0.5])}


def test_the_axis_of_a_share_ends_at_1_and_a_flat_share_looks_flat(
    tmp_path: Path, drawn: list[Sequence[Panel]]
) -> None:
    plot_runs([run_of(tmp_path / "a", {"humanline/unclamped": 1.0})], tmp_path / "plot.png")
    low, high = drawn[0][0].limits or (0.0, 0.0)
    assert low < 0.95
    assert 1 < high < 1.01


def test_a_distance_that_grows_exponentially_has_a_logarithmic_axis(
    tmp_path: Path, drawn: list[Sequence[Panel]]
) -> None:
    near, far = ([{"eval_kl_initial": value} for value in (0.0, 0.3, last)] for last in (0.9, 240.0))
    for name, lines in (("near", near), ("far", far)):
        plot_runs([run_of(tmp_path / name, *lines)])
    (linear,), (steep,) = drawn
    assert (linear.steep, steep.steep) == (False, True)
    assert steep.y == f"{linear.y} (log above 1)"
    draw([[linear], [steep]], ["near", "far"], tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_runs_with_the_same_name_are_labelled_with_their_parent_folders() -> None:
    assert labels_of([Path("a/run"), Path("b/run"), Path("b/other")]) == ["a/run", "b/run", "b/other"]
    with pytest.raises(ValueError, match="expected different runs"):
        labels_of([Path("a"), Path("b/../a")])


def test_two_runs_of_one_picture_never_look_the_same() -> None:
    looks = [(style_of(i)["color"], str(style_of(i)["linestyle"])) for i in range(12)]
    assert len(set(looks)) == 12


def test_one_run_is_drawn_into_its_folder_and_several_into_the_current_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, settings in {"plain": {"clamp": False, "reference": "frozen"}, "humanline": {}}.items():
        evaluation = {"eval_dataset": records("dpo", 3), "eval_strategy": "steps", "eval_steps": 2}
        trained(name, max_steps=2, **evaluation, **settings)
    capsys.readouterr()
    assert main(["plot", "plain"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "left out, no run logged it: reward (heldout/reward, eval_reward, reward)",
        "left out, 1 throughout: humanline/unclamped",
        "plain/plot.png",
    ]
    assert Path("plain/plot.png").read_bytes().startswith(b"\x89PNG")
    assert main(["plot", "plain", "--output", "one.svg"]) == 0
    assert 'id="legend' not in Path("one.svg").read_text()
    assert main(["plot", "plain", "humanline"]) == 0
    assert Path("plot.png").read_bytes().startswith(b"\x89PNG")
    assert main(["plot", "plain", "humanline", "--output", "both.svg"]) == 0
    assert Path("both.svg").read_text().startswith("<?xml")
    assert 'id="legend' in Path("both.svg").read_text()


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["absent"], "expected a run's folder with a metrics.jsonl, found none at absent/metrics.jsonl"),
        (["empty"], "empty/metrics.jsonl: expected log lines, got none"),
        (["bare"], "bare: nothing to draw; left out, no run logged it: reward"),
        (["good", "--output", "plot.xyz"], "plot.xyz: expected a file that ends in one of "),
        (["good", "--output", "plot"], "plot: expected a file that ends in one of "),
        (["good", "--output", "absent/plot.png"], "absent/plot.png: expected a file in a folder that exists, found no"),
        (["good", "--output", "god/plot.png"], "found no folder god; did you mean good?"),
        (["good", "--output", "folder.png"], "folder.png: expected a file to write, got a folder"),
    ],
)
def test_an_input_that_cannot_be_drawn_gives_one_line_and_status_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    argv: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    run_of(Path("good"), {"reward": 0.5})
    run_of(Path("bare"), {"loss": 0.5})
    run_of(Path("empty"))
    Path("folder.png").mkdir()
    assert main(["plot", *argv]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("humanline plot: error: ")
    assert said in line


def test_an_incomplete_last_line_of_a_killed_run_is_ignored(tmp_path: Path) -> None:
    run = run_of(tmp_path / "a", {"reward": 0.5})
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1, "rew')
    assert {name: values.tolist() for name, values in read_metrics(run).items()} == {
        "step": [0],
        "seconds": [0],
        "reward": [0.5],
    }


def test_lines_that_are_no_log_lines_are_counted_in_one_line(tmp_path: Path, drawn: list[Sequence[Panel]]) -> None:
    run = run_of(tmp_path / "a", {"reward": 0.5})
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"reward": 1}\n[1]\n{"step": true, "reward": 1}\n\n\xff\n{"step": 7, "reward": "high"}\n')
    said = plot_runs([run], tmp_path / "plot.png")
    assert drawn[0][0].curves == {"a": ([0], [0.5])}
    assert said[0] == f"{run}/metrics.jsonl: 5 lines are not log lines (JSON objects with a step), the first is line 2"


VALUES = [None, True, "0.5", [1.0], {"a": 1}, 0, -3, 0.5, 1e308, -1e308, float("nan"), float("-inf"), 10**400]


@pytest.mark.parametrize("key", ["step", "seconds", "reward", "humanline/unclamped", "time/training", "absent"])
def test_values_of_another_program_are_drawn_or_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str
) -> None:
    lines = [{"humanline/unclamped": 0.5, key: value} for value in VALUES]
    run = run_of(tmp_path / "a", *lines, {key: 0.5})
    if key == "seconds":
        text = (run / "metrics.jsonl").read_text().replace("seconds", "hours")
        (run / "metrics.jsonl").write_text(text)
    status = main(["plot", str(run)])
    said = capsys.readouterr()
    assert (status, len(said.err.splitlines())) in ((0, 0), (2, 1))


def test_a_thinned_curve_keeps_its_lowest_and_highest_points_in_order() -> None:
    g = np.random.default_rng(0)
    lines = {"step": np.arange(10_000.0), "reward": g.normal(size=10_000)}
    lines["reward"][[17, 4321]] = -9, 9
    steps, rewards = series(lines, "step", "reward", 100)
    assert len(steps) <= 100
    assert steps == sorted(steps)
    assert (min(rewards), max(rewards)) == (-9, 9)
    assert all(lines["reward"][int(step)] == reward for step, reward in zip(steps, rewards, strict=True))
    for stretch in np.split(lines["reward"], 50):
        assert {stretch.min(), stretch.max()} <= set(rewards)
    assert series(lines, "step", "reward", 10_000) == series(lines, "step", "reward")


MEMORY = """
import sys
from pathlib import Path
from humanline_fused.cli import main
for run in sys.argv[1:]:
    assert main(["plot", run]) == 0
    (peak,) = (line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
    print("KiB", peak)
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the kernel does not tell the peak of a process")
def test_a_plot_of_a_million_log_lines_takes_at_most_250_mib_more_than_one_of_two(tmp_path: Path) -> None:
    """Extrapolated: 100,000 lines take a tenth of what a million takes. Torch alone takes 200 to 570 MiB.

    The peak that getrusage gives a new process begins with that of its parent, unlike VmHWM.
    """
    names = [f"other/{i}" for i in range(20)] + ["humanline/unclamped", "rewards/margins", "time/training", "reward"]
    number = 100_000
    small, large = (tmp_path / str(lines) for lines in (2, number))
    line = json.dumps({name: 0.123456789 + i for i, name in enumerate(names)})[1:]
    for run, lines in ((small, 2), (large, number)):
        run.mkdir()
        with (run / "metrics.jsonl").open("w") as file:
            file.writelines(f'{{"step": {i}, "seconds": {i}, {line}\n' for i in range(lines))
    command = [sys.executable, "-c", MEMORY, str(small), str(large)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    before, after = (int(text.split()[1]) for text in done.stdout.splitlines() if text.startswith("KiB"))
    assert (after - before) * 1_000_000 / number <= 250 * 1024
