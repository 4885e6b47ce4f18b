"""A first run without a network: a start model, preference pairs and settings, written by `humanline init`."""

import json
import random
import re
import shlex
from pathlib import Path

from humanline_fused.demo import task
from humanline_fused.demo.model_answers import preference_pairs
from humanline_fused.demo.start_model import make_start
from humanline_fused.demo.threads import one_thread

SETTINGS = "train.yaml"
"""File of the settings in the folder of a first run."""

LETTERS = (4, 5)
START_STEPS = 300
PROMPTS = {"pairs": 640, "heldout": 96, "start": 9600}
"""Prompts for each purpose, without overlap."""

TEXT = """\
# Humanline DPO on a task that can be checked: put letters in alphabetical order. Paths are relative to the folder in
# which `humanline train` runs.
model: {start}
dataset: {pairs}
eval_dataset: {heldout}
reward: humanline_fused.demo.task:rewards   # of the model's own answers to the held-out prompts: 1 if right, else 0
max_completion_length: 8
output_dir: {run}

objective: dpo
log_epsilon_P: -0.2         # narrower than the paper's 1.5, so that it binds in a run this short
log_epsilon_R: 0.2
sync_every: 25              # the reference follows the policy every 25 steps
max_length: 32

per_device_train_batch_size: 16
max_steps: 50
learning_rate: 3.0e-4       # of a small model; start at 1e-6 with a large one
eval_strategy: steps
eval_steps: 10
eval_on_start: true
save_steps: 50
use_cpu: true
"""


@one_thread()
def write_first_run(folder: Path, *, seed: int = 0, start_steps: int = START_STEPS) -> list[str]:
    """Write ``start/`` (model and tokenizer), ``pairs.jsonl``, ``heldout.jsonl`` and ``train.yaml`` to a new folder.

    The start model was fine-tuned on right and, more often, reversed answers; the pairs are its own right and wrong
    answers.

    Args:
        folder: may exist if it is empty.
        seed: of model, prompts and samples.
        start_steps: supervised steps.

    Returns:
        A line for each thing that was written, and one with the next command.

    Raises:
        ValueError: the folder has files, or the start's answers give no pairs.
        OSError: the folder cannot be written.
    """
    if folder.is_dir() and (found := next(folder.iterdir(), None)):
        advice = "remove the folder, or name another"
        raise ValueError(f"{folder}: expected a new or empty folder, it has {found.name}: {advice}")
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    prompts = task.make_prompts(sum(PROMPTS.values()), rng, LETTERS)
    asked = prompts[: PROMPTS["pairs"] + PROMPTS["heldout"]]
    made_of = {"hidden": 64, "layers": 2, "batch_size": 32, "learning_rate": 6e-3}
    model, tokenizer = make_start(folder / "start", prompts[len(asked) :], rng, seed=seed, steps=start_steps, **made_of)
    first = set(asked[: PROMPTS["pairs"]])
    pairs = list(preference_pairs(model, tokenizer, asked, seed))
    files = {
        "pairs": [pair for pair in pairs if pair["prompt"] in first],
        "heldout": [pair for pair in pairs if pair["prompt"] not in first],
    }
    said = [f"{folder / 'start'}: a Llama with {model.num_parameters()} parameters"]
    for name, rows in files.items():
        if not rows:
            raise ValueError(f"{name}: expected right and wrong answers of the start model, got none")
        task.write_jsonl(folder / f"{name}.jsonl", rows)
        said.append(f"{folder / name}.jsonl: {len(rows)} pairs, e.g. {rows[0]}")
    settings = folder / SETTINGS
    places = {name.split(".")[0]: folder / name for name in ("start", "pairs.jsonl", "heldout.jsonl", "run")}
    settings.write_text(TEXT.format_map({name: _scalar(place) for name, place in places.items()}), encoding="utf-8")
    return [*said, f"{settings}: the settings", f"next: humanline train --config {shlex.quote(str(settings))}"]


def _scalar(path: Path) -> str:
    """Return a path as YAML, quoted where YAML would read something else.

    >>> print(_scalar(Path("first/run")), _scalar(Path("my run #2")))
    first/run "my run #2"
    """
    text = path.as_posix()
    return text if re.fullmatch(r"[\w/.-]*/[\w/.-]*", text) else json.dumps(text)
