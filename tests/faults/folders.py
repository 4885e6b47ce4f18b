"""A run's folder as what must be equal, bit for bit, in two runs that ended alike."""

import json
import re
from pathlib import Path
from typing import Any

import torch

TIMES = re.compile(r"seconds|runtime|per_second|^time/|_time$|total_flos")
"""Names of measured times, which differ from run to run, and of the work since the run was resumed."""

LOGS = ("metrics.jsonl", "completions.jsonl")
UNLIKE = {"files.json", "training_args.bin", "settings.json"}
"""Files with hashes of times, with the name of the machine, or with how the last start was called."""

SET_ASIDE = re.compile(r"(metrics|completions)\.jsonl\.\d+")
"""Logs that a later start kept, because no checkpoint could replace them."""


def contents(folder: Path) -> dict[str, Any]:
    """Return what each file holds, by its path in the folder, without measured times."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and not SET_ASIDE.fullmatch(file.name))
    return {str(file.relative_to(folder)): _readable(file) for file in files}


def difference(one: dict[str, Any], other: dict[str, Any]) -> str:
    """Return the files in which two folders differ; empty if they are equal."""
    return ", ".join(name for name in sorted(one.keys() | other.keys()) if one.get(name) != other.get(name))


def lines_of(file: Path) -> list[Any]:
    """Return the objects of a log's lines without measured times; a line that is no object as its text."""
    return [_timeless(_parsed(line)) for line in file.read_bytes().split(b"\n")]


def _readable(file: Path) -> Any:
    """Return what a file holds, or its bytes if it is damaged."""
    try:
        return _content(file)
    except Exception:
        return file.read_bytes()


def _content(file: Path) -> Any:
    if file.name in UNLIKE:
        return "there"
    if file.name in LOGS:
        return lines_of(file)
    if file.name == "trainer_state.json":
        state = _timeless(json.loads(file.read_text()))
        return state | {"best_model_checkpoint": Path(state["best_model_checkpoint"] or "").name}
    if file.name == "run_state.pt":
        return _bytes({k: v for k, v in torch.load(file, weights_only=True).items() if k != "clock"})
    return file.read_bytes()


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return line


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _timeless(part) for name, part in value.items() if not TIMES.search(name)}
    return [_timeless(part) for part in value] if isinstance(value, list) else value


def _bytes(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    if isinstance(value, dict):
        return {name: _bytes(part) for name, part in value.items()}
    return [_bytes(part) for part in value] if isinstance(value, list | tuple) else value
