"""The samples of rounds in a run's folder: a line each, with a checksum, from which a round is read back."""

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from humanline_fused.training.data.examples import Sample
from humanline_fused.training.data.plan import RoundPlan
from humanline_fused.training.run.earlier_run import COMPLETIONS
from humanline_fused.training.run.json_lines import as_json, read

__all__ = ["COMPLETIONS", "logged_groups", "sealed"]

CHECKSUM = "checksum"


def sealed(line: Mapping[str, Any], run: str) -> dict[str, Any]:
    """Return the line with a CRC-32 of the run's code and of the line."""
    return {**line, CHECKSUM: zlib.crc32(f"{run}{as_json(line)}".encode())}


def logged_groups(file: Path, step: int, plan: RoundPlan, size: int, run: str) -> list[list[Sample]]:
    """Read the samples of the round that began at a step.

    Args:
        file: the samples of a run, a line each. Lines of earlier versions have no checksum, which is accepted.
        step: the optimizer step.
        plan: the run's rounds.
        size: samples per prompt.
        run: the run's code, as of :func:`~humanline_fused.training.run.identity.code_of`.

    Returns:
        The samples, by prompt, as they were drawn.

    Raises:
        ValueError: the round has no samples, not all of them, or others than this run wrote.
    """
    lines = [line for line in read(file) if line.get("step") == step]
    if not lines:
        raise ValueError(
            f"{file}: expected the samples of the round that began at step {step}, it has none: the run ended before"
        )
    for line in lines:
        content = {name: value for name, value in line.items() if name != CHECKSUM}
        if CHECKSUM in line and sealed(content, run) != line:
            raise ValueError(
                f"{file}: expected the samples that this run drew at step {step}, got a changed line, or another run's "
                f"(prompt_index {line.get('prompt_index')})"
            )
    samples = [
        Sample(
            line["prompt_index"],
            torch.tensor(line["completion_ids"], dtype=torch.int32),
            line["completion"],
            line["reward"],
            line["advantage"],
        )
        for line in lines
    ]
    planned = [prompt for prompt in plan.prompts(step // plan.rollout_every) for _ in range(size)]
    if planned != (given := [sample.prompt for sample in samples]):
        raise ValueError(
            f"{file}: expected samples of the prompts (prompt_index) {planned} at step {step}, got those of {given}"
        )
    return [samples[start : start + size] for start in range(0, len(samples), size)]
