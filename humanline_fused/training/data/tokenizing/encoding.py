"""Token ids of texts, many at a time, and the special tokens that a tokenizer knows and adds."""

import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from humanline_fused.training.data.prefix import common_length

Span = tuple[int, int]
"""Start and end of a part of a text, in characters."""


class Encoder:
    """Encodes texts with a tokenizer, without the special tokens that it adds by itself.

    Attributes:
        left, right: ids that the tokenizer adds before and after every text.
        eos: the end-of-sequence token's text; empty if the tokenizer has none.
        unknown: id of the token for text that is not in the vocabulary; None if that may be another token's, too.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.eos = str(tokenizer.eos_token or "")
        other = (tokenizer.bos_token_id, tokenizer.eos_token_id)
        self.unknown = None if tokenizer.unk_token_id in other else tokenizer.unk_token_id
        self.left, self.right = _added_to("a", tokenizer)
        self.backend = _backend(tokenizer)

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text."""
        if self.backend is None:
            return [self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]  # pyright: ignore
        return [encoding.ids for encoding in self.backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def spans(self, texts: Sequence[str]) -> list[list[Span]]:
        """Return the part of the text that each token comes from.

        Raises:
            ValueError: the tokenizer does not know it, because it is not one of the ``tokenizers`` library.
        """
        if self.backend is None:
            raise ValueError(
                f"train_on: expected 'completion' with {type(self.tokenizer).__name__}, which cannot tell the text of "
                "a token, so that tokens of others cannot be masked, got 'assistant'"
            )
        return [encoding.offsets for encoding in self.backend.encode_batch(list(texts), add_special_tokens=False)]

    def unknown_part(self, text: str) -> str:
        """Return the first part of a text that is not in the vocabulary; empty if the tokenizer does not tell it."""
        if self.backend is None:
            return ""
        encoding = self.backend.encode(text, add_special_tokens=False)
        start, end = encoding.offsets[encoding.ids.index(self.unknown)]
        return text[start:end]

    def with_left(self, ids: list[int]) -> list[int]:
        """Return ids of plain text with :attr:`left` before them, unless they begin with it already."""
        return ids if ids[: len(self.left)] == self.left else self.left + ids

    def without_left(self, text: str) -> str:
        """Return a text without the text of :attr:`left` at its beginning."""
        return text.removeprefix(str(self.tokenizer.decode(self.left))) if self.left else text

    def shared_start(self, texts: Sequence[str]) -> int:
        """Return a position before which all texts are equal, and at which they can be cut without another token.

        It is the start of the last special token in the texts' common beginning: a tokenizer splits there before it
        normalises and merges, so the ids of both parts together are those of the whole. 0 if there is none.
        """
        if self.backend is None:
            return 0
        common = texts[0][: min(common_length(texts[0], text) for text in texts)]
        start = 0
        for match in self.added.finditer(common):
            # A token at the very end could be the beginning of a longer one.
            if match[0] in self._cuts and (match.end() < len(common) or all(text == common for text in texts)):
                start = match.start()
        return start

    @cached_property
    def special(self) -> re.Pattern[str]:
        """Matches the special tokens in a text."""
        return _alternatives([str(token) for token in self._added if token.special])

    @cached_property
    def added(self) -> re.Pattern[str]:
        """Matches the tokens that were added to the vocabulary, special or not, in a text."""
        return _alternatives([str(token) for token in self._added])

    @cached_property
    def _cuts(self) -> set[str]:
        """Special tokens that are found in a text before it is normalised, whatever is before them."""
        if self.tokenizer.split_special_tokens:
            return set()
        return {str(token) for token in self._added if not (token.normalized or token.lstrip or token.single_word)}

    @property
    def _added(self) -> list[Any]:
        return list(self.tokenizer.added_tokens_decoder.values())


def _alternatives(texts: Sequence[str]) -> re.Pattern[str]:
    longest_first = sorted(filter(None, texts), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def _added_to(text: str, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Return the ids that a tokenizer adds before and after a text."""
    whole: list[int] = tokenizer(text)["input_ids"]  # pyright: ignore[reportAssignmentType]
    plain: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]  # pyright: ignore[reportAssignmentType]
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain:
            return whole[:start], whole[start + len(plain) :]
    return [], []


def _backend(tokenizer: PreTrainedTokenizerBase) -> Any:
    """Return the tokenizer of the ``tokenizers`` library that does what ``tokenizer`` does; None if there is none."""
    kind = type(tokenizer)
    same = all(
        getattr(kind, name, None) is getattr(PreTrainedTokenizerFast, name) for name in ("__call__", "_encode_plus")
    )
    if not (isinstance(tokenizer, PreTrainedTokenizerFast) and same):
        return None
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = tokenizer.split_special_tokens
    return backend
