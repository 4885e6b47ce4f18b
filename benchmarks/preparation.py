"""``python -m benchmarks data``: how fast rows become tokens, and what these keep in memory.

Pairs of messages with words of a 32k byte-level vocabulary are prepared in several ways, which take turns; each reading
is one process's. The bases are what was done before, one text at a time, and TRL's preparation.
"""

import argparse
import gc
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from benchmarks.goals import Goal, number, ratio
from benchmarks.machine import environment, run_module
from benchmarks.results import read, write
from benchmarks.tables import Line, columns, piped

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ROWS, TURNS, WARM_UP = 4000, 5, 256


@dataclass(frozen=True)
class Preparation:
    """One reading.

    Attributes:
        way: how the pairs were prepared.
        tokens: of a pair, on average.
        seconds: from the rows in memory to the examples.
        cpu_seconds: of all threads and processes.
        kept_bytes: of the examples, for each byte of their token ids (int32); 0 where it was not asked.
        grown_bytes: by how much the process grew, likewise.
    """

    way: str
    turn: int
    pairs: int
    tokens: float
    seconds: float
    cpu_seconds: float
    kept_bytes: float = 0.0
    grown_bytes: float = 0.0


def vocabulary(generator: random.Random) -> tuple[PreTrainedTokenizerFast, list[str]]:
    """A tokenizer of at most 32k tokens, and the words that it was trained on, the frequent ones first."""
    syllables = [a + b + c for a in "bdfgklmnprstvz" for b in "aeiou" for c in ("", "n", "r", "s", "t")]
    words = ["".join(generator.choices(syllables, k=generator.randint(1, 4))) for _ in range(30_000)]
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    marks = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=32_000, special_tokens=marks, initial_alphabet=core.pre_tokenizer.alphabet(), show_progress=False
    )
    core.train_from_iterator((f" {word}" for word in words for _ in range(2)), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=CHATML
    )
    return tokenizer, words


def pairs(number: int, words: Sequence[str], generator: random.Random) -> list[dict[str, Any]]:
    """Pairs of about 576 tokens, a quarter of them in the prompt."""
    weights = [1 / (rank + 10) for rank in range(len(words))]

    def message(role: str, length: int) -> list[dict[str, str]]:
        return [{"role": role, "content": " ".join(generator.choices(words, weights, k=length))}]

    sizes = {"prompt": ("user", 98), "chosen": ("assistant", 156), "rejected": ("assistant", 156)}
    return [{name: message(*size) for name, size in sizes.items()} for _ in range(number)]


def one_at_a_time(rows: Sequence[Any], tokenizer: Any) -> list[tuple[torch.Tensor, ...]]:
    """Prompt and whole texts rendered and tokenised one by one, kept as a tensor each."""
    made = []
    for row in rows:
        prompt = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True)["input_ids"]
        wholes = [
            tokenizer.apply_chat_template(row["prompt"] + row[name])["input_ids"] for name in ("chosen", "rejected")
        ]
        parts = [prompt, *(whole[len(prompt) :] for whole in wholes)]
        made.append(tuple(torch.tensor(part, dtype=torch.int32) for part in parts))
    return made


def trl(rows: Sequence[Any], tokenizer: Any) -> Any:
    from datasets import Dataset
    from trl.trainer.dpo_trainer import DPOTrainer

    args = SimpleNamespace(dataset_num_proc=None, max_length=4096, truncation_mode="keep_start")
    itself: Any = SimpleNamespace(_tokenizer=tokenizer)
    return DPOTrainer._prepare_dataset(itself, Dataset.from_list(list(rows)), tokenizer, args, "train")  # type: ignore


def ours(num_proc: int | None) -> Callable[[Sequence[Any], Any], Any]:
    def way(rows: Sequence[Any], tokenizer: Any) -> Any:
        from humanline_fused.training.data.prepare import prepare
        from humanline_fused.training.objectives import find_objective

        return prepare(rows, tokenizer, find_objective("dpo"), max_length=4096, num_proc=num_proc).examples

    return way


BASE, OURS = "one text at a time", "humanline, a thread per core"
WAYS = {BASE: one_at_a_time, "TRL": trl, OURS: ours(None), "humanline, a process per core": ours(os.cpu_count())}

GOALS = (
    Goal("pairs/s, times one text at a time", ratio("pairs_per_s", OURS, BASE), 3.5, ".2f"),
    Goal("bytes kept per byte of token ids", number(OURS, "kept_bytes"), 1.3, ".2f", at_most=True),
)


def reading(way: str, turn: int, number: int) -> Preparation:
    """Prepare the pairs once, after a few that are not counted."""
    generator = random.Random(turn)
    tokenizer, words = vocabulary(generator)
    rows = pairs(number, words, generator)
    WAYS[way](rows[:WARM_UP], tokenizer)
    gc.collect()
    process, start = psutil.Process(), time.perf_counter()
    before, cpu = process.memory_info().rss, os.times()
    made = WAYS[way](rows, tokenizer)
    seconds, after = time.perf_counter() - start, os.times()
    grown = process.memory_info().rss - before
    tokens = sum(len(part) for example in made for part in _parts(example))
    kept = getattr(made, "nbytes", 0)
    return Preparation(
        way,
        turn,
        number,
        tokens / number,
        seconds,
        sum(after[:4]) - sum(cpu[:4]),
        kept / (4 * tokens),
        grown / (4 * tokens),
    )


def _parts(example: Any) -> Sequence[Any]:
    if isinstance(example, tuple):
        return example
    if isinstance(example, dict):
        return [example["prompt_ids"], example["chosen_ids"], example["rejected_ids"]]
    return [example.prompt_ids, *example.completions]


@dataclass(frozen=True)
class Way:
    """The readings of one way."""

    pairs_per_s: float
    cpu_ms: float
    kept_bytes: float
    grown_bytes: float


def summaries(rows: Sequence[Preparation]) -> dict[str, Way]:
    """The median of the readings, by way."""
    found = {}
    for way in dict.fromkeys(row.way for row in rows):
        mine = [row for row in rows if row.way == way]
        found[way] = Way(
            statistics.median(row.pairs / row.seconds for row in mine),
            statistics.median(1e3 * row.cpu_seconds / row.pairs for row in mine),
            statistics.median(row.kept_bytes for row in mine),
            statistics.median(row.grown_bytes for row in mine),
        )
    return found


def lines(rows: Sequence[Preparation]) -> tuple[list[Line], list[Line]]:
    """The ways, and the goals."""
    found = summaries(rows)
    ways = [
        {
            "way": way,
            "pairs/s": f"{one.pairs_per_s:.0f}",
            "CPU ms per pair": f"{one.cpu_ms:.2f}",
            "kept, per byte of ids": f"{one.kept_bytes:.2f}" if one.kept_bytes else "",
            "process grew, per byte of ids": f"{one.grown_bytes:.2f}" if one.grown_bytes else "",
        }
        for way, one in found.items()
    ]
    return ways, [{"goal": goal.name, **goal.cells(found)} for goal in GOALS]


def markdown(path: Path, name: str, words: Sequence[str] = ()) -> str:
    """The tables, and where the figures come from."""
    facts, rows = read(path, Preparation)
    ways, goals = lines(rows)
    turns, tokens = len({row.turn for row in rows}), statistics.mean(row.tokens for row in rows)
    source = (
        f"`{name}`: {facts['machine']}; transformers {facts['transformers']}; tokenizers {facts['tokenizers']}; "
        f"{rows[0].pairs} pairs of {tokens:.0f} tokens on average, medians of {turns} processes each."
    )
    return "\n\n".join([piped(ways), piped(goals), source])


def main(arguments: list[str]) -> None:
    import tokenizers
    import transformers

    parser = argparse.ArgumentParser(prog="python -m benchmarks data", description=__doc__)
    parser.add_argument("--rows", type=int, default=ROWS, help="pairs in each reading")
    parser.add_argument("--turns", type=int, default=TURNS, help="processes of each way")
    parser.add_argument("--csv", type=Path, help="keep the readings, and the machine's facts, in this file")
    parser.add_argument("--reading", nargs=3, metavar=("WAY", "TURN", "FILE"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.reading:
        way, turn, file = options.reading
        write(Path(file), Preparation, {}, [reading(way, int(turn), options.rows)])
        return
    facts = {
        **environment(torch.device("cpu")),
        "transformers": transformers.__version__,
        "tokenizers": tokenizers.__version__,
    }
    rows: list[Preparation] = []
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(options.turns):
            for way in WAYS:
                file = Path(folder) / "reading.csv"
                task = ("data", "--rows", str(options.rows), "--reading", way, str(turn), str(file))
                changes: dict[str, str | None] = {"TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1"}
                done = run_module("benchmarks", *task, changes=changes, stdout=subprocess.DEVNULL)
                if done.returncode:
                    sys.exit(f"{way}: the process ended with {done.returncode}")
                rows += read(file, Preparation)[1]
    print("\n\n".join(columns(part) for part in lines(rows)))
    if options.csv:
        write(options.csv, Preparation, facts, rows)
