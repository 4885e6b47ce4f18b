"""A disk that fills ends a run on all ranks, with one line that names the file and the checkpoint to resume from."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers.modeling_utils
from safetensors import SafetensorError

from humanline_fused import durable
from humanline_fused.training import HumanlineTrainer
from humanline_fused.training.run import lock
from humanline_fused.training.run.whole_run import train_and_export
from tests.ranks import on_ranks
from tests.tiny_model import records, tiny_config, tiny_model, tiny_tokenizer

FULL = OSError(errno.ENOSPC, "No space left on device")
AFTER = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
NONE = "There is no checkpoint to resume from"


def length(completions: list[str], **columns: Any) -> list[float]:
    return [float(len(text)) for text in completions]


def made(folder: Path, **settings: Any) -> HumanlineTrainer:
    """Return a trainer with rounds and held-out data, so that a run writes every file that there is."""
    online = {"rollout_every": 2, "num_generations": 2, "max_completion_length": 2, "scale_rewards": "none"}
    args = tiny_config(folder, objective="grpo", reference="copy", logging_steps=2, **online, **AFTER | settings)
    data, held_out = [{"prompt": f"w{i}"} for i in range(6)], records("grpo", 4)
    given = {"processing_class": tiny_tokenizer(), "reward_function": length}
    return HumanlineTrainer(tiny_model(), args, data, held_out, **given)


def failing(function: Callable[..., Any], name: str, error: Exception, calls: int) -> Callable[..., Any]:
    """Return the function, which raises an error at a call with a file of that name, or at any call."""
    left = [calls]

    def full(*args: Any, **kwargs: Any) -> Any:
        left[0] -= not name or any(name in str(getattr(part, "name", part)) for part in (*args, *kwargs.values()))
        if not left[0]:
            left[0] = -1
            raise error
        return function(*args, **kwargs)

    return full


TORCH = RuntimeError("[enforce fail at inline_container.cc] . PytorchStreamWriter failed\nwriting file data/0")
RUST = SafetensorError("I/O error: No space left on device (os error 28)")
# name of the case: owner and name of what writes, the file, the error, at which call, the file and checkpoint it names
WRITES: dict[str, tuple[Any, str, str, Exception, int, str, str]] = {
    "lock": (lock, "_me", "", FULL, 1, ".lock", ""),
    "settings": (Path, "open", "settings.json", FULL, 1, "settings.json", NONE),
    "initial scores": (Path, "open", "initial_eval_logp.pt", FULL, 1, "initial_eval_logp.pt", NONE),
    "samples": (Path, "open", "completions.jsonl", FULL, 2, "completions.jsonl", "checkpoint-2 is complete: resume"),
    "metrics": (Path, "open", "metrics.jsonl", FULL, 4, "metrics.jsonl", "checkpoint-2 is complete: resume from it"),
    "optimizer": (torch, "save", "optimizer.pt", TORCH, 2, "checkpoint-4", "checkpoint-2 is complete: resume from it"),
    "weights": (transformers.modeling_utils, "safe_save_file", "", RUST, 1, "checkpoint-2", NONE),
    "list of files": (durable, "write_text", "files.json", FULL, 2, "checkpoint-4", "checkpoint-2 is complete"),
    "export": (transformers.modeling_utils, "safe_save_file", "", RUST, 3, "", "checkpoint-4 is complete: resume from"),
}


@pytest.mark.parametrize("case", WRITES)
def test_a_disk_that_fills_ends_the_run_with_one_line(tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch):
    owner, name, inside, error, calls, file, kept = WRITES[case]
    trainer = made(tmp_path)
    monkeypatch.setattr(owner, name, failing(getattr(owner, name), inside, error, calls))
    with pytest.raises(OSError, match=r"could not be written|No space") as ended:
        train_and_export(trainer)
    said = str(ended.value)
    assert str(tmp_path / file) in said
    assert " ".join(str(error).split()) in said
    assert kept in said
    assert "\n" not in said
    assert not list(tmp_path.glob("*.writing"))


def test_tokens_that_cannot_be_written_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(np, "save", failing(np.save, "ids.npy", FULL, 1))
    with pytest.raises(OSError, match=r"run/tokens/\w+: the tokens of the data cannot be written: .*No space left"):
        made(tmp_path / "run")
    assert list((tmp_path / "run" / "tokens").iterdir()) == []


RANKS = ("metrics", "samples", "optimizer", "export")


def fill(folder: Path, world_size: int) -> None:
    """On two ranks let the first one's writes fail, one file after the other."""
    said, writes = {}, os.environ["RANK"] == "0"
    for case in RANKS:
        owner, name, inside, error, calls, _, _ = WRITES[case]
        trainer = made(folder / case, max_steps=6)
        with pytest.MonkeyPatch.context() as patch:
            if writes:
                patch.setattr(owner, name, failing(getattr(owner, name), inside, error, calls))
            with pytest.raises(OSError, match=r"could not be written|No space") as ended:
                train_and_export(trainer)
            said[case] = str(ended.value)
    with pytest.MonkeyPatch.context() as patch:
        if writes:
            patch.setattr(np, "save", failing(np.save, "ids.npy", FULL, 1))
        with pytest.raises(OSError, match="tokens of the data") as stopped:
            made(folder / "tokens")
        said["tokens"] = str(stopped.value)
    torch.save(said, folder / f"said {os.environ['RANK']}")


def test_all_ranks_end_with_the_line_of_the_one_that_writes(tmp_path: Path):
    on_ranks(tmp_path, (fill, 2))
    first, second = (torch.load(tmp_path / f"said {rank}") for rank in range(2))
    assert first == second
    assert all(str(tmp_path / case / WRITES[case][5]) in first[case] for case in RANKS)
