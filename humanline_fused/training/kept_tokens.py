"""Tokens kept beside a run: prepared once, read by every process and by a run that resumes."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from transformers import PreTrainedTokenizerBase

from humanline_fused.training.config import HumanlineConfig
from humanline_fused.training.data.examples import fingerprint
from humanline_fused.training.data.held_out import trained_on
from humanline_fused.training.data.reading.sources import read_rows
from humanline_fused.training.data.store import StoredExamples, load

FOLDER = "tokens"
"""Subfolder of the run's folder with one folder per dataset, named by the key of its content and settings."""

FORMAT = 1
"""Version of what is stored under a key; a change of the tokenisation or of the files raises it."""


def key_of(source: Any, split: str, tokenizer: PreTrainedTokenizerBase, settings: Mapping[str, Any]) -> str:
    """Return a key of all that the tokens depend on: content, tokenizer, chat template and settings.

    What a template makes of today's date is not in it, so that a run resumes on another day with its tokens.
    """
    key = hashlib.sha256()
    if isinstance(source, str | Path) and Path(source).is_file():
        with Path(source).open("rb") as file:
            for block in iter(lambda: file.read(1 << 20), b""):
                key.update(block)
    else:
        for _, record in read_rows(source, split):
            key.update(json.dumps(record, default=_as_text).encode("utf-8", "surrogatepass"))
    for part in (FORMAT, split, _describe(tokenizer), dict(settings)):
        key.update(json.dumps(part, sort_keys=True, default=_as_text).encode())
    return key.hexdigest()[:16]


def _describe(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return {
        "class": type(tokenizer).__name__,
        "vocabulary": tokenizer.get_vocab() if backend is None else backend.to_str(),
        "special": tokenizer.special_tokens_map,
        "split_special_tokens": getattr(tokenizer, "split_special_tokens", False),
        "template": tokenizer.chat_template,
    }


def _as_text(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else repr(value)


def kept(
    config: HumanlineConfig, key: Callable[[], str], make: Callable[[StoredExamples | None, Mapping[str, Any]], Any]
) -> Any:
    """Return data whose tokens are in the run's folder, prepared by the first process if they are not there yet.

    Args:
        key: returns the key of :func:`key_of`.
        make: returns the data, from the stored examples and notes, or prepared if there are none. What it returns has
            ``examples`` and ``notes()``.

    Raises:
        OSError: on every process, if the first one could not write the tokens.
    """
    failed: OSError | None = None
    with config.main_process_first(local=False, desc="tokens of the data"):
        folder = Path(str(config.output_dir), FOLDER, key())
        found = load(folder)
        data = make(*(found or (None, {})))
        if found is None and config.should_save and not config.dry_run:
            try:
                data.examples.save(folder, data.notes())
            except OSError as error:
                failed = error
            else:
                found = load(folder)
                assert found is not None
                data = make(*found)
    for error in gather_object([failed]):
        if error is not None:
            raise error
    return data


def find_kept(
    run_dir: Path, num_examples: int, code: int, groups: int | None = None, held_out: float | None = None
) -> StoredExamples | None:
    """Return the stored examples of a run that have this number and :func:`fingerprint`; None if there are none.

    Args:
        groups: code of their groups; None if the run has no groups.
        held_out: share of the stored examples that the run held out, which are left out; None if there is none.
    """
    for folder in sorted(Path(run_dir, FOLDER).glob("*")):
        # A suffix is that of a folder being written, or left by a process that was killed.
        found = None if folder.suffix else load(folder)
        if not found:
            continue
        examples = trained_on(found[0], held_out)
        if len(examples) != num_examples or fingerprint(examples) != code:
            continue
        if groups is None or (examples.units and examples.units.code == groups):
            return examples
    return None
