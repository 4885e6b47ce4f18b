"""Make the initial model and the data of all examples, without network or GPU.

The task is the demo's: put letters in alphabetical order. The model was fine-tuned on ascending and, more often,
descending order, so some of its completions are right and some are wrong. Files in --output_dir:

    start/                model and tokenizer
    pairs.jsonl           prompt, chosen, rejected                   for DPO
    heldout_pairs.jsonl   the same for other prompts                 for its evaluation
    chat.jsonl            the same pairs as lists of messages        for DPO
    unpaired.jsonl        prompt, completion, label                  for KTO
    groups.jsonl          prompt, completions, rewards               for offline GRPO
    prompts.jsonl         prompt, answer                             for GRPO in online rounds
"""

import argparse
import random
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from humanline_fused.demo import task
from humanline_fused.demo.model_answers import sample
from humanline_fused.demo.start_model import make_start
from humanline_fused.demo.threads import one_thread

Group = dict[str, Any]

SAMPLES = 4
"""Completions per prompt."""


@one_thread()
def make(folder: Path, *, steps: int, prompts: int, seed: int) -> None:
    """Fine-tune the model for ``steps`` steps, sample completions of 9/8 · ``prompts`` prompts, and write all files.

    Raises:
        ValueError: no prompt has both a right and a wrong completion, so there are no pairs.
    """
    rng = random.Random(seed)
    heldout = max(1, prompts // 8)
    asked = task.make_prompts(2 * prompts + heldout, rng, lengths=(2, 4))
    model, tokenizer = make_start(folder / "start", asked[prompts + heldout :], rng, seed=seed, steps=steps)

    drawn = [sample(model, tokenizer, asked[: prompts + heldout], seed + i) for i in range(SAMPLES)]
    answers = map(list, zip(*drawn, strict=True))
    every = [group(prompt, completions) for prompt, completions in zip(asked, answers, strict=False)]
    groups, heldout_groups = every[:prompts], every[prompts:]
    files = {
        "pairs": pairs(groups),
        "heldout_pairs": pairs(heldout_groups),
        "chat": map(as_messages, pairs(groups)),
        "unpaired": unpaired(groups),
        "groups": groups,
        "prompts": ({"prompt": g["prompt"], "answer": task.answer(g["prompt"])} for g in groups),
    }
    for name, rows in files.items():
        print(f"{write(folder / f'{name}.jsonl', rows)} rows in {folder / f'{name}.jsonl'}")


def group(prompt: str, completions: list[str]) -> Group:
    """All completions of a prompt with their rewards."""
    rewards = [task.reward(prompt, completion) for completion in completions]
    return {"prompt": prompt, "completions": completions, "rewards": rewards}


def pairs(groups: Iterable[Group]) -> Iterator[dict[str, str]]:
    """Yield the first right and the first wrong completion of each group that has both."""
    for g in groups:
        by_reward = dict(zip(reversed(g["rewards"]), reversed(g["completions"]), strict=True))
        if len(by_reward) == 2:
            yield {"prompt": g["prompt"], "chosen": by_reward[1.0], "rejected": by_reward[0.0]}


def unpaired(groups: Iterable[Group]) -> Iterator[dict[str, Any]]:
    """Yield every completion with its label."""
    for g in groups:
        for completion, reward in zip(g["completions"], g["rewards"], strict=True):
            yield {"prompt": g["prompt"], "completion": completion, "label": reward == 1.0}


def as_messages(pair: Mapping[str, str]) -> dict[str, list[dict[str, str]]]:
    """Convert a pair of texts to messages: prompt by the user, completions by the assistant."""
    roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    return {column: [{"role": role, "content": pair[column]}] for column, role in roles.items()}


def write(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write the rows and return their number."""
    rows = list(rows)
    if not rows:
        raise ValueError(f"expected a prompt with right and wrong answers for {path}, got none: raise --steps")
    task.write_jsonl(path, rows)
    return len(rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output_dir", type=Path, default=Path("runs/examples"), help="Default: %(default)s")
    parser.add_argument("--steps", type=int, default=120, help="Supervised fine-tuning steps. Default: %(default)s")
    parser.add_argument("--prompts", type=int, default=512, help="Prompts to train on. Default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="Default: %(default)s")
    options = parser.parse_args()
    make(options.output_dir, steps=options.steps, prompts=options.prompts, seed=options.seed)
