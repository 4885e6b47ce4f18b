"""From preference data in TRL's columns to token ids: read, check, tokenise."""

import json
import math
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, IterableDataset, load_dataset, load_from_disk
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

COLUMNS = {
    "dpo": ("prompt", "chosen", "rejected"),
    "kto": ("prompt", "completion", "label"),
    "grpo": ("prompt", "completions", "rewards"),
}

ADVANTAGE_EPSILON = 1e-2
"""Added to the standard deviation of a group's rewards (HALOs at aa02f66; TRL has 1e-4)."""

Text = str | list[dict[str, Any]]
Record = Mapping[str, Any]


@dataclass(frozen=True)
class Example:
    """One row of training data.

    Attributes:
        prompt_ids: int32.
        completions: int32 each; chosen and rejected for DPO, else one.
        weight: KTO: 1 desirable, 0 undesirable; GRPO: the advantage; DPO: unused.
    """

    prompt_ids: Tensor
    completions: tuple[Tensor, ...]
    weight: float = 0.0


def _read_jsonl(path: Path) -> Iterator[tuple[str, Any]]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            where = f"{path}, line {number}"
            if not line.strip():
                continue
            try:
                yield where, json.loads(line)
            except ValueError as error:
                raise ValueError(
                    f"{where}: expected one JSON object per line, got {line.strip()[:80]!r}: {error}"
                ) from None


def read_records(source: Any, split: str = "train") -> Iterator[tuple[str, Any]]:
    """Each record with the words that say where it stands.

    Args:
        source: a JSONL file, a Parquet file, a folder that ``datasets`` saved, the name of a dataset, a ``Dataset``, or
            a sequence of mappings.
        split: which split of a folder or name that has several.

    Raises:
        TypeError: the source cannot be read by index, so the coming batches could not be seen ahead.
        ValueError: a JSONL line does not parse (file and line number).
    """
    name = "dataset"
    if isinstance(source, str | Path):
        name, path = str(source), Path(source)
        if path.suffix in (".jsonl", ".json", ".ndjson"):
            if not path.is_file():
                raise ValueError(f"dataset: expected a JSONL file at {path}, found none")
            yield from _read_jsonl(path)
            return
        if path.suffix == ".parquet":
            source = load_dataset("parquet", data_files=name, split="train")
        else:
            source = load_from_disk(name) if path.is_dir() else load_dataset(name)
        if not isinstance(source, Dataset):
            if split not in source:
                raise ValueError(f"{name}: expected a split {split!r}, it has {sorted(source)}")
            source = source[split]
    if isinstance(source, IterableDataset) or not isinstance(source, Dataset | Sequence):
        raise TypeError(
            "expected data that can be read by index (a file, a datasets.Dataset, a list), because the coming batches "
            f"are seen ahead, got {type(source).__name__}"
        )
    for index, record in enumerate(source):
        yield f"{name}, example {index}", record


def is_text(value: Any) -> bool:
    return isinstance(value, str)


def is_messages(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(m, Mapping) and "role" in m for m in value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def check_record(where: str, record: Any, objective: str) -> None:
    """Raise ValueError, beginning with ``where``, unless the record has the objective's columns and kinds."""
    columns = COLUMNS[objective]
    if not isinstance(record, Mapping):
        raise ValueError(f"{where}: expected an object with the columns {', '.join(columns)}, got {record!r:.80}")
    missing = [column for column in columns if record.get(column) is None]
    if missing:
        raise ValueError(
            f"{where}: lacks {', '.join(map(repr, missing))}; {objective} needs {', '.join(columns)}, "
            f"this has {', '.join(map(repr, record))}"
        )
    completions = completions_of(record, objective)
    kind = is_text if is_text(record["prompt"]) else is_messages
    if not all(kind(value) for value in (record["prompt"], *completions)):
        raise ValueError(
            f"{where}: expected prompt and completions all to be text or all to be lists of {{role, content}} "
            f"messages, got {record!r:.200}"
        )
    if objective == "kto" and record["label"] not in (True, False):
        raise ValueError(f"{where}: expected label to be true or false, got {record['label']!r}")
    if objective == "grpo":
        rewards = record["rewards"]
        if not isinstance(rewards, list) or len(rewards) != len(completions) or not all(map(_is_number, rewards)):
            raise ValueError(
                f"{where}: expected {len(completions)} finite rewards, one a completion, got {rewards!r:.80}"
            )


def completions_of(record: Record, objective: str) -> list[Text]:
    """The completions of a record, in the order of :attr:`Example.completions`."""
    if objective == "grpo":
        value = record["completions"]
        return value if isinstance(value, list) else [value]
    return [record[column] for column in COLUMNS[objective] if column not in ("prompt", "label")]


def _ids(tokenizer: PreTrainedTokenizerBase, text: Text, **template: Any) -> list[int]:
    if isinstance(text, str):
        return tokenizer(text)["input_ids"]  # pyright: ignore[reportReturnType]
    return tokenizer.apply_chat_template(text, tokenize=True, return_dict=True, **template)["input_ids"]  # pyright: ignore


def prompt_ids_of(tokenizer: PreTrainedTokenizerBase, prompt: Text) -> list[int]:
    """Token ids of a prompt alone, up to where the answer begins."""
    return _ids(tokenizer, prompt) if isinstance(prompt, str) else _ids(tokenizer, prompt, add_generation_prompt=True)


def _common_prefix(first: list[int], second: list[int]) -> int:
    pairs = zip(first, second, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))


def tokenize(
    tokenizer: PreTrainedTokenizerBase, prompt: Text, completions: Sequence[Text]
) -> tuple[list[int], list[list[int]]]:
    """Token ids of a prompt and of its completions, equal to TRL 1.16's.

    A completion is tokenised together with its prompt and begins where the two part, which is not always at the
    prompt's end. Plain text gets an end-of-sequence token if it has none; a chat template brings its own.
    """
    if isinstance(prompt, str):
        eos = str(tokenizer.eos_token or "")
        texts = [c if str(c).endswith(eos) else f"{c}{eos}" for c in completions]
    else:
        texts = list(completions)
    prompt_ids = prompt_ids_of(tokenizer, prompt)
    full = [_ids(tokenizer, prompt + text) for text in texts]  # pyright: ignore[reportOperatorIssue]
    start = min(_common_prefix(prompt_ids, ids) for ids in full)
    return prompt_ids[:start], [ids[start:] for ids in full]


def advantages(rewards: Sequence[float], scale: bool) -> list[float]:
    """``(s − mean) / (population standard deviation + 1e-2)`` within a group; not divided if not ``scale``.

    Source: arXiv 2509.24207, section 5; HALOs at aa02f66.

    >>> advantages([1.0, 1.0], scale=True)
    [0.0, 0.0]
    """
    mean = math.fsum(rewards) / len(rewards)
    centred = [reward - mean for reward in rewards]
    if not scale:
        return centred
    deviation = math.sqrt(math.fsum(c * c for c in centred) / len(centred))
    return [c / (deviation + ADVANTAGE_EPSILON) for c in centred]


@dataclass(frozen=True)
class PreparedData:
    """What became of a dataset.

    Attributes:
        examples: what is left to learn from.
        dropped: examples whose prompt alone fills ``max_length``.
        truncated: completions that lost their end, with the end-of-sequence token, to ``max_length``.
        groups_without_signal: GRPO: groups of equal rewards, whose advantages are all 0.
    """

    examples: list[Example]
    dropped: int = 0
    truncated: int = 0
    groups_without_signal: int = 0

    def summary(self) -> str:
        """How many examples there are, and what was left out or cut."""
        notes = {
            "dropped (prompt >= max_length)": self.dropped,
            "completions cut at max_length (end of sequence lost)": self.truncated,
            "groups without signal (equal rewards)": self.groups_without_signal,
        }
        return ", ".join([f"{len(self.examples)} examples", *(f"{what}: {n}" for what, n in notes.items() if n)])


def fingerprint(examples: Sequence[Example]) -> int:
    """CRC-32 over token ids, lengths and weights: data that differ are told apart."""
    code = 0
    for example in examples:
        for ids in (example.prompt_ids, *example.completions):
            code = zlib.crc32(ids.numpy().tobytes(), zlib.crc32(len(ids).to_bytes(8, "little"), code))
        code = zlib.crc32(struct.pack("<d", example.weight), code)
    return code


def prepare(
    source: Any,
    tokenizer: PreTrainedTokenizerBase,
    objective: str,
    *,
    max_length: int,
    split: str = "train",
    scale_rewards: bool = True,
    progress: bool = False,
) -> PreparedData:
    """Read, check and tokenise a dataset. DPO: an example is a pair; KTO and GRPO: a completion.

    Args:
        source, split: as :func:`read_records`; the columns are ``prompt, chosen, rejected`` (dpo), ``prompt,
            completion, label`` (kto) or ``prompt, completions, rewards`` (grpo), as text or as lists of messages.
        tokenizer: whose chat template renders messages.
        objective: ``"dpo"``, ``"kto"`` or ``"grpo"``.
        max_length: tokens of prompt and completion; longer sequences keep their start.
        scale_rewards: whether GRPO's advantages are divided by the group's standard deviation.
        progress: show a progress bar.

    Raises:
        ValueError, TypeError: a record does not fit (file and line number), or nothing is left.
    """
    examples, dropped, truncated, without_signal = [], 0, 0, 0
    for where, record in tqdm(read_records(source, split), desc="Tokenizing", unit=" rows", disable=not progress):
        check_record(where, record, objective)
        texts = completions_of(record, objective)
        if objective == "grpo":
            groups = [[text] for text in texts]
            weights = advantages(record["rewards"], scale_rewards)
            without_signal += len(set(record["rewards"])) == 1
        else:
            groups = [texts]
            weights = [float(record.get("label", 0.0)) if objective == "kto" else 0.0]
        for group, weight in zip(groups, weights, strict=True):
            prompt_ids, completions = tokenize(tokenizer, record["prompt"], group)
            if len(prompt_ids) >= max_length:
                dropped += 1
                continue
            room = max_length - len(prompt_ids)
            truncated += sum(len(c) > room for c in completions)
            ids = [torch.tensor(c[:room], dtype=torch.int32) for c in completions]
            examples.append(Example(torch.tensor(prompt_ids, dtype=torch.int32), tuple(ids), weight))
    if not examples:
        raise ValueError(
            f"expected at least one example, got none ({dropped} dropped: prompt >= max_length={max_length})"
        )
    return PreparedData(examples, dropped, truncated, without_signal)
