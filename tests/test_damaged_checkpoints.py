"""A checkpoint is what was written, byte for byte: damage is found before anything is loaded."""

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from humanline_fused import durable
from humanline_fused.looking.stored_run import reading
from humanline_fused.training.run import checkpoint
from humanline_fused.training.run.checkpoint import describe_resume, resolve_resume
from humanline_fused.training.run.manifest import MANIFEST, damage, faults, has_hashes, seal
from tests.tiny_model import tiny_trainer

SAVING = {"save_strategy": "steps", "save_steps": 2}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished run with checkpoints at steps 2, 4 and 6."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    tiny_trainer(folder, **SAVING).train()
    return folder


@pytest.fixture
def run_dir(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def without_hashes(folder: Path) -> None:
    """Give a checkpoint the list of files of an earlier version."""
    listed = json.loads((folder / MANIFEST).read_text())["files"]
    (folder / MANIFEST).write_text(json.dumps({name: entry["bytes"] for name, entry in listed.items()}))


def flipped(file: Path, bit: int) -> None:
    content = bytearray(file.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)


def test_files_are_listed_with_size_and_hash_and_the_list_with_its_own(tmp_path: Path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "optimizer.pt").write_bytes(b"abc")
    seal(tmp_path)
    listed = json.loads((tmp_path / MANIFEST).read_text())
    sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, appendix B.1
    assert listed["files"] == {"deep/optimizer.pt": {"bytes": 3, "sha256": sha256}}
    assert len(listed["sha256"]) == 64
    assert has_hashes(tmp_path)


def test_one_flipped_bit_in_any_file_is_found_and_named(run_dir: Path):
    folder, draw = run_dir / "checkpoint-6", random.Random(0)
    assert damage(folder) == []
    for file in sorted(folder.iterdir()):
        content = file.read_bytes()
        for _ in range(8):
            flipped(file, draw.randrange(8 * len(content)))
            (said,) = damage(folder)
            assert said.startswith(file.name), said
        file.write_bytes(content)
    assert damage(folder) == []


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "run_state.pt", "trainer_state.json"])
def test_auto_passes_over_a_damaged_checkpoint_and_says_why(
    run_dir: Path, name: str, capsys: pytest.CaptureFixture[str]
):
    flipped(run_dir / "checkpoint-6" / name, 77)
    assert resolve_resume(run_dir, "auto") == str(run_dir / "checkpoint-4")
    said = f"{name} is damaged, or another checkpoint's"
    with pytest.raises(ValueError, match=rf"checkpoint-6 is not a complete checkpoint: {said}"):
        tiny_trainer(run_dir, **SAVING).train(str(run_dir / "checkpoint-6"))
    capsys.readouterr()
    tiny_trainer(run_dir, **SAVING).train("auto")
    assert f"checkpoint-4, step 4 (not from checkpoint-6: {said}" in capsys.readouterr().out


def test_a_file_of_another_run_is_refused(run_dir: Path, tmp_path: Path):
    tiny_trainer(tmp_path / "other", **SAVING, learning_rate=1e-3).train()
    name = "optimizer.pt"
    shutil.copy(tmp_path / "other" / "checkpoint-6" / name, run_dir / "checkpoint-6" / name)
    assert faults(run_dir / "checkpoint-6") == []
    with pytest.raises(ValueError, match=r"checkpoint-6 is not a complete checkpoint: optimizer\.pt is damaged, or an"):
        tiny_trainer(run_dir, **SAVING).train(str(run_dir / "checkpoint-6"))


@pytest.mark.parametrize("content", ["", "[]", "3", '"text"', "{}", '{"files": {}}', '{"files": [], "sha256": ""}'])
def test_a_list_of_files_that_is_none_is_refused(run_dir: Path, content: str):
    (run_dir / "checkpoint-6" / MANIFEST).write_text(content)
    assert resolve_resume(run_dir, "auto") == str(run_dir / "checkpoint-4")
    with pytest.raises(ValueError, match=rf"checkpoint-6 is not a complete checkpoint: {MANIFEST}"):
        resolve_resume(run_dir, str(run_dir / "checkpoint-6"))


def test_where_all_are_damaged_auto_stops_with_each_reason(run_dir: Path):
    for step in (2, 4, 6):
        flipped(run_dir / f"checkpoint-{step}" / "optimizer.pt", 8 * step)
    with pytest.raises(ValueError, match=r"got checkpoint-6, checkpoint-4, checkpoint-2: optimizer\.pt is damaged"):
        resolve_resume(run_dir, "auto")


# Checkpoints of earlier versions


def test_a_checkpoint_without_hashes_still_loads_and_that_is_said(run_dir: Path, capsys: pytest.CaptureFixture[str]):
    without_hashes(run_dir / "checkpoint-6")
    assert not has_hashes(run_dir / "checkpoint-6")
    tiny_trainer(run_dir, **SAVING).train("auto")
    said = capsys.readouterr().out
    assert said.count("checkpoint-6, step 6; written without hashes, so its files' sizes alone were compared") == 1
    assert "without hashes" not in describe_resume(run_dir / "checkpoint-4")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("optimizer.pt", "optimizer.pt was not written by torch.save"),
        ("rng_state.pth", "rng_state.pth was not written by torch.save"),
        ("run.json", "run.json is not JSON"),
    ],
)
def test_a_zeroed_file_without_a_hash_is_refused(run_dir: Path, name: str, said: str):
    folder = run_dir / "checkpoint-6"
    without_hashes(folder)
    (folder / name).write_bytes(bytes((folder / name).stat().st_size))
    assert damage(folder) == [said]


def test_json_that_is_no_object_is_refused_without_a_hash_too(run_dir: Path):
    state = run_dir / "checkpoint-6" / "trainer_state.json"
    without_hashes(state.parent)
    state.write_text("[]".ljust(state.stat().st_size))
    assert damage(state.parent) == ["trainer_state.json: expected an object, got list"]


# Writing


def test_everything_is_on_the_disk_before_a_checkpoint_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Every file and folder is synced before the rename, the list of files last; then the folder with the name."""
    events: list[str] = []
    fsync, rename = os.fsync, os.rename

    def recorded(descriptor: int) -> None:
        events.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    def renamed(source: Any, target: Any) -> None:
        events.append("rename")
        rename(source, target)

    staged = tmp_path / "run" / checkpoint.STAGING / "checkpoint-1"
    (staged / "deep").mkdir(parents=True)
    (staged / "optimizer.pt").write_bytes(b"1")
    (staged / "deep" / "weights").write_bytes(b"2")
    monkeypatch.setattr(os, "fsync", recorded)
    monkeypatch.setattr(os, "rename", renamed)
    checkpoint.publish(staged, tmp_path / "run" / "checkpoint-1")
    at = events.index("rename")
    assert {"optimizer.pt", "weights", "deep", "checkpoint-1"} <= set(events[: at - 2])
    assert events[at - 2 :] == [f"{MANIFEST}{durable.UNFINISHED}", "checkpoint-1", "rename", "run"]


def test_a_link_with_the_name_of_an_unfinished_file_is_not_followed(tmp_path: Path):
    mine = tmp_path / "mine"
    mine.write_text("precious")
    (tmp_path / f"file{durable.UNFINISHED}").symlink_to(mine)
    durable.write_text(tmp_path / "file", "new")
    (tmp_path / f"file.pt{durable.UNFINISHED}").symlink_to(mine)
    durable.save({"a": torch.ones(1)}, tmp_path / "file.pt")
    assert mine.read_text() == "precious"
    assert (tmp_path / "file").read_text() == "new"


def test_a_link_with_the_name_of_the_staging_folder_is_not_followed(tmp_path: Path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "file").write_text("precious")
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / checkpoint.STAGING).symlink_to(elsewhere)
    tiny_trainer(run_dir, **SAVING | {"max_steps": 2}).train()
    assert [file.name for file in elsewhere.iterdir()] == ["file"]
    assert damage(run_dir / "checkpoint-2") == []


@pytest.mark.parametrize("error", [MemoryError, torch.OutOfMemoryError])
def test_a_lack_of_memory_is_no_fault_of_the_checkpoint(tmp_path: Path, error: type[Exception]):
    with pytest.raises(error), reading(tmp_path):
        raise error
