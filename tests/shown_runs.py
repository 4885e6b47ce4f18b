"""Runs with a checkpoint at every step, for what `humanline show` reads back."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from humanline_fused.training import HumanlineTrainer
from tests.tiny_model import records, tiny_config, tiny_model, tiny_tokenizer

Run = Callable[..., Path]


def runs_in(folder: Path) -> Run:
    """Return what makes a run by name, once, at a learning rate at which tokens are clamped."""
    tiny_model().save_pretrained(folder / "start")
    tiny_tokenizer().save_pretrained(folder / "start")
    made: dict[str, Path] = {}

    def run(objective: str = "dpo", **settings: Any) -> Path:
        name = "-".join([objective, *(f"{key}={value}" for key, value in settings.items())])
        if name not in made:
            data = folder / f"{objective}.jsonl"
            data.write_text("".join(f"{json.dumps(row)}\n" for row in records(objective, 20)))
            common = {"model": str(folder / "start"), "dataset": str(data), "learning_rate": 3e-2, "max_steps": 5}
            common |= {"save_strategy": "steps", "save_steps": 1, "log_epsilon_P": -0.5, "log_epsilon_R": 0.75}
            args = tiny_config(folder / name, objective=objective, **common, **settings)
            reward = in_order if args.rollout_every else None
            HumanlineTrainer(args=args, reward_function=reward).train()
            made[name] = folder / name
        return made[name]

    return run


def in_order(completions: list[str], **columns: Any) -> list[float]:
    """A reward that differs between any two samples."""
    return [float(i) for i in range(len(completions))]
