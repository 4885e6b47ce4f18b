"""Nothing of an earlier run is lost unless ``overwrite_output_dir`` says so, and no two runs write into one folder."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from humanline_fused.stored_lines import DamagedLine
from humanline_fused.training.run import json_lines, lock
from humanline_fused.training.run.checkpoint import STAGING, refuse_early
from humanline_fused.training.run.earlier_run import set_aside
from humanline_fused.training.run.lock import LOCK, locked
from tests.tiny_model import tiny_trainer

SAVING = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}


def steps(file: Path) -> list[int]:
    return [json.loads(line)["step"] for line in file.read_text().splitlines()]


# Starting over


@pytest.mark.parametrize("resume", [None, "auto"])
def test_a_finished_run_without_checkpoints_is_not_overwritten(tmp_path: Path, resume: str | None):
    tiny_trainer(tmp_path, max_steps=1).train()
    before = (tmp_path / "metrics.jsonl").read_bytes()
    with pytest.raises(
        ValueError, match=r"has a finished run \(metrics\.jsonl\) without checkpoints: use another outpu"
    ):
        tiny_trainer(tmp_path, max_steps=1).train(resume)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_an_exported_model_is_not_overwritten_by_a_new_run(tmp_path: Path):
    trainer = tiny_trainer(tmp_path)
    trainer.save_model()
    with pytest.raises(ValueError, match=r"has a finished run \(model\.safetensors\) without checkpoints"):
        trainer.train()


def test_overwrite_output_dir_starts_over_without_the_earlier_checkpoints_and_metrics(tmp_path: Path):
    tiny_trainer(tmp_path, **SAVING).train()
    tiny_trainer(tmp_path, **SAVING | {"max_steps": 3}, overwrite_output_dir=True).train()
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-3"]
    assert steps(tmp_path / "metrics.jsonl") == [1, 2, 3, 3]
    assert list(tmp_path.glob("*.1")) == []


def test_of_a_checkpoint_that_is_a_link_the_link_alone_is_removed(tmp_path: Path):
    tiny_trainer(tmp_path / "run", **SAVING).train()
    (tmp_path / "run" / "checkpoint-2").rename(tmp_path / "elsewhere")
    (tmp_path / "run" / "checkpoint-2").symlink_to(tmp_path / "elsewhere")
    before = sorted((tmp_path / "elsewhere").iterdir())
    tiny_trainer(tmp_path / "run", max_steps=1, overwrite_output_dir=True).train()
    assert list((tmp_path / "run").glob("checkpoint-*")) == []
    assert sorted((tmp_path / "elsewhere").iterdir()) == before


def test_with_auto_a_usable_checkpoint_is_continued_and_not_overwritten(tmp_path: Path):
    tiny_trainer(tmp_path, **SAVING).train()
    again = tiny_trainer(tmp_path, **SAVING, overwrite_output_dir=True)
    again.train("auto")
    assert again.state.global_step == 4
    assert (tmp_path / "checkpoint-2").is_dir()
    for step in (2, 4):
        (tmp_path / f"checkpoint-{step}" / "optimizer.pt").unlink()
    tiny_trainer(tmp_path, **SAVING | {"max_steps": 2}, overwrite_output_dir=True).train("auto")
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]


@pytest.mark.parametrize("resume", [True, "checkpoint-2"])
def test_to_start_over_and_to_continue_are_not_asked_for_together(tmp_path: Path, resume: str | bool):
    with pytest.raises(ValueError, match=rf"overwrite_output_dir .* be used with resume_from_checkpoint={resume!r}"):
        tiny_trainer(tmp_path, overwrite_output_dir=True).train(resume)


def test_a_dry_run_removes_nothing(tmp_path: Path):
    tiny_trainer(tmp_path, **SAVING).train()
    before = sorted(tmp_path.rglob("*"))
    tiny_trainer(tmp_path, **SAVING, overwrite_output_dir=True, dry_run=True).train()
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("resume", [None, "auto"])
def test_logs_of_a_run_that_was_killed_before_its_first_checkpoint_are_kept(
    tmp_path: Path, resume: str | None, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "lo')
    (tmp_path / "metrics.jsonl.1").write_text("still an earlier one")
    (tmp_path / "completions.jsonl").write_text('{"step": 0}\n')
    before = (tmp_path / "metrics.jsonl").read_bytes()
    tiny_trainer(tmp_path, max_steps=1).train(resume)
    assert (tmp_path / "metrics.jsonl.2").read_bytes() == before
    assert (tmp_path / "metrics.jsonl.1").read_text() == "still an earlier one"
    assert (tmp_path / "completions.jsonl.1").read_text() == '{"step": 0}\n'
    assert steps(tmp_path / "metrics.jsonl")[0] == 1
    assert "metrics.jsonl is an earlier run's, which left no checkpoint to resume from: kept as metrics.jsonl.2" in (
        capsys.readouterr().out
    )


def test_logs_of_a_folder_into_which_another_run_is_resumed_are_kept(tmp_path: Path):
    tiny_trainer(tmp_path / "run", **SAVING).train()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\n')
    tiny_trainer(tmp_path / "other", **SAVING).train(str(tmp_path / "run" / "checkpoint-2"))
    assert steps(tmp_path / "other" / "metrics.jsonl.1") == [1]
    assert min(steps(tmp_path / "other" / "metrics.jsonl")) == 3


def test_empty_logs_are_not_worth_keeping(tmp_path: Path):
    (tmp_path / "metrics.jsonl").touch()
    assert set_aside(tmp_path) == []


# Damaged lines


LINES = b'{"step": 1}\n{"step": 2, "lo\xff\n[3]\n{"step": 4}\n{"step": 5'


def test_a_damaged_line_is_reported_and_does_not_end_the_reading(tmp_path: Path):
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(LINES)
    with pytest.warns(DamagedLine) as said:
        assert json_lines.read(file) == [{"step": 1}, {"step": 4}]
    assert [str(one.message) for one in said] == [
        f"{file}, line {number} is not a JSON object: skipped" for number in (2, 3)
    ]


@pytest.mark.parametrize(
    ("last", "kept"), [(4, LINES[: LINES.rindex(b"\n") + 1]), (3, LINES[: LINES.index(b'{"step": 4')])]
)
def test_a_damaged_line_stays_in_the_file_with_the_line_before_it(tmp_path: Path, last: int, kept: bytes):
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(LINES)
    with pytest.warns(DamagedLine):
        json_lines.cut(file, lambda line: line["step"] <= last)
    assert file.read_bytes() == kept


def test_a_resumed_run_keeps_a_damaged_line_of_its_metrics(tmp_path: Path):
    tiny_trainer(tmp_path, **SAVING).train()
    file = tmp_path / "metrics.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    lines[1] = b"#" + lines[1][1:]
    file.write_bytes(b"".join(lines))
    with pytest.warns(DamagedLine, match=r"metrics\.jsonl, line 2 is not a JSON object"):
        tiny_trainer(tmp_path, **SAVING).train("auto")
    assert file.read_bytes().splitlines(keepends=True)[:4] == lines[:4]


# One run in a folder


HOLD = """
import pathlib, runpy, sys, time
with runpy.run_path(sys.argv[1])["locked"](pathlib.Path(sys.argv[2])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path):
    """A process that holds the folder's lock."""
    command = [sys.executable, "-c", HOLD, str(lock.__file__), str(tmp_path)]  # the file alone, to import no torch
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_run_in_a_folder_is_refused_with_the_first_ones_process(
    tmp_path: Path, holder: "subprocess.Popen[str]"
):
    with pytest.raises(BlockingIOError, match=rf"is in use by the run of process {holder.pid} on .*use another output"):
        tiny_trainer(tmp_path).train()
    assert not (tmp_path / "metrics.jsonl").exists()


@pytest.mark.parametrize("dry_run", [False, True])
def test_what_a_run_is_writing_is_left_to_it(tmp_path: Path, dry_run: bool):
    """Neither the check before the model is loaded nor a dry run has the lock."""
    tiny_trainer(tmp_path, **SAVING | {"max_steps": 2}).train()
    staged = tmp_path / STAGING / "checkpoint-2"
    staged.parent.mkdir()
    (tmp_path / "checkpoint-2").rename(staged)
    (tmp_path / "metrics.jsonl").unlink()
    if dry_run:
        tiny_trainer(tmp_path, **SAVING, dry_run=True).train("auto")
    else:
        refuse_early(tmp_path, "auto", overwrite=False)
    assert staged.is_dir()
    tiny_trainer(tmp_path, **SAVING | {"max_steps": 2}).train("auto")
    assert (tmp_path / "checkpoint-2").is_dir()


def test_the_lock_of_a_killed_process_locks_nothing(tmp_path: Path, holder: "subprocess.Popen[str]"):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert json.loads((tmp_path / LOCK).read_text())["pid"] == holder.pid
    tiny_trainer(tmp_path, max_steps=1).train()
    assert not (tmp_path / LOCK).exists()


def test_a_lock_is_held_once_in_a_process_and_freed_at_the_end(tmp_path: Path):
    with locked(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
        with pytest.raises(BlockingIOError, match=f"process {os.getpid()}"), locked(tmp_path):
            pass
    with locked(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("pid", "host", "busy"), [(1, None, True), (2**22 + 1, None, False), (5, "elsewhere", True)])
def test_without_locks_the_named_process_is_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pid: int, host: str | None, busy: bool
):
    import errno
    import fcntl
    import socket

    def unsupported(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", unsupported)
    (tmp_path / LOCK).write_text(json.dumps({"host": host or socket.gethostname(), "pid": pid}))
    if busy:
        with pytest.raises(BlockingIOError, match=f"process {pid} on"), locked(tmp_path):
            pass
    else:
        with locked(tmp_path):
            assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()


def test_a_lock_that_is_a_link_is_not_followed(tmp_path: Path):
    (tmp_path / "mine").write_text("precious")
    (tmp_path / LOCK).symlink_to(tmp_path / "mine")
    with pytest.raises(OSError, match=r"\.lock"), locked(tmp_path):
        pass
    assert (tmp_path / "mine").read_text() == "precious"
