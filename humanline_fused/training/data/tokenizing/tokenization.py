"""Token ids of rows: prompt, completions, and which of their tokens the policy writes."""

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
from transformers import PreTrainedTokenizerBase

from humanline_fused.training.data.findings import (
    ADDED_END,
    MASKED,
    NO_END,
    OTHERS_COUNT,
    SPECIAL_IN_TEXT,
    TOKENS_MERGED,
    UNKNOWN,
    UNREAD,
    Findings,
)
from humanline_fused.training.data.forms import Form
from humanline_fused.training.data.prefix import common_length
from humanline_fused.training.data.rows.records import Row, is_blank
from humanline_fused.training.data.tokenizing.conversation import begun_prompt, conversations
from humanline_fused.training.data.tokenizing.encoding import Encoder, Span
from humanline_fused.training.data.tokenizing.pieces import places
from humanline_fused.training.data.tokenizing.render_check import RenderCheck
from humanline_fused.training.data.tokenizing.rendering import REFUSALS, Template
from humanline_fused.training.data.tokenizing.roles import written_by_policy
from humanline_fused.training.data.tokenizing.unread import unread_names

Ids = np.ndarray
"""Token ids, [n], int32."""


@dataclass(frozen=True)
class UncutExample:
    """An example before the cut at ``max_length``.

    Attributes:
        prompt: ids.
        completions: ids of each side.
        masks: bool, [n] each: the tokens that count; None for a side where all do.
        blank: number of completions without content.
        weight, reward: as of :class:`~humanline_fused.training.data.examples.Example`.
        key: a hash of the prompt's text, before it is tokenised with a completion.
    """

    prompt: Ids
    completions: tuple[Ids, ...] = ()
    masks: tuple[Ids | None, ...] = ()
    blank: int = 0
    weight: float = 0.0
    reward: float = 0.0
    key: int = 0


def key_of_prompt(text: str) -> int:
    """Return a hash of a prompt, a signed integer of 64 bits.

    >>> key_of_prompt("sort bead: ") == key_of_prompt("sort bead: ") != key_of_prompt("sort beads: ")
    True
    """
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


@dataclass
class _Texts:
    """The texts of a row.

    Attributes:
        prompt, wholes: the prompt, and the prompt with each completion.
        kept: parts of each of ``wholes`` that the policy writes; None where it writes the whole completion.
        plain: True for plain text, which gets the special tokens that the tokenizer adds before it.
        cut: position at which all are cut to encode their common beginning once.
    """

    where: str
    prompt: str
    wholes: list[str]
    kept: list[list[Span] | None]
    plain: bool
    cut: int = 0

    def parts(self) -> list[str]:
        """Return the common beginning, and the rest of the prompt and of each whole text."""
        return [self.prompt[: self.cut], *(text[self.cut :] for text in (self.prompt, *self.wholes))]


@dataclass
class Tokenised:
    """Some rows' examples.

    Attributes:
        rows: the examples of each row, or the error that it is refused with.
        findings: what there is to say about them.
    """

    rows: list[list[UncutExample] | ValueError] = field(default_factory=list)
    findings: Findings = field(default_factory=Findings)


class RowTokenizer:
    """Converts rows to token ids, equal to TRL 1.16's except where docs/data.md says so.

    A completion is tokenised together with its prompt, and begins at the first token that differs from the prompt
    alone. Plain text gets an end-of-sequence token if it has none; messages get the one of the chat template.

    Args:
        tokenizer: its chat template renders messages.
        form: gives the examples of a row; None for prompts alone.
        scale_rewards: as in :func:`~humanline_fused.training.data.advantages.advantages`.
        train_on: "assistant": tokens of messages that the policy did not write do not count. "completion": all do.
        stops: ids of further stop tokens, besides the end of sequence.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        form: Form | None,
        *,
        scale_rewards: str = "group",
        train_on: str = "assistant",
        stops: Collection[int] = (),
    ) -> None:
        self.form, self.scale_rewards, self.train_on = form, scale_rewards, train_on
        self.encoder = Encoder(tokenizer)
        self.template = Template(tokenizer, self.encoder.added)
        self.ends = [end for end in (self.encoder.eos, *map(str, tokenizer.convert_ids_to_tokens([*stops]))) if end]

    def __call__(self, rows: Sequence[tuple[str, Row | ValueError]]) -> Tokenised:
        """Return the examples of rows, each given with its place; the errors of others are passed on."""
        done = Tokenised()
        texts = [self._texts(where, row, done.findings) for where, row in rows]
        parts = [part for one in texts if isinstance(one, _Texts) for part in one.parts()]
        ids = iter(self.encoder.ids(parts))
        for (_, row), one in zip(rows, texts, strict=True):
            if isinstance(one, ValueError):
                done.rows.append(one)
            else:
                assert isinstance(row, Row)
                head, *tails = [next(ids) for _ in range(2 + len(one.wholes))]
                done.rows.append(self._examples(row, one, [head + tail for tail in tails], len(head), done.findings))
        return done

    def _texts(self, where: str, row: Row | ValueError, findings: Findings) -> _Texts | ValueError:
        if isinstance(row, ValueError):
            return row
        try:
            texts = (
                self._plain(where, row, findings) if isinstance(row.prompt, str) else self._chat(where, row, findings)
            )
        except REFUSALS as error:
            return ValueError(f"{where}: the tokenizer does not take it: {error}")
        texts.cut = self.encoder.shared_start([texts.prompt, *texts.wholes])
        return texts

    def _plain(self, where: str, row: Row, findings: Findings) -> _Texts:
        assert isinstance(row.prompt, str)
        eos = self.encoder.eos
        ended = [str(text) if str(text).endswith(eos) else f"{text}{eos}" for text in row.completions]
        findings.add(NO_END, where, count=0 if eos else len(ended))
        for text in (self.encoder.without_left(row.prompt), *(text.removesuffix(eos) for text in ended)):
            if found := self.encoder.special.search(text):
                findings.add(SPECIAL_IN_TEXT, where, found[0])
        if self.encoder.right:
            added = str(self.encoder.tokenizer.decode(self.encoder.right))
            findings.add(ADDED_END, where, added, 1 + len(ended))
        return _Texts(where, row.prompt, [row.prompt + text for text in ended], [None] * len(ended), True)

    def _chat(self, where: str, row: Row, findings: Findings) -> _Texts:
        template, variables = self.template, row.template
        given = conversations(row.prompt, row.completions)  # pyright: ignore[reportArgumentType]
        wholes = [template.fit(messages, variables) for messages in given.wholes]
        if given.begun:
            prompt = begun_prompt(template, given.prompt, variables, wholes)
        else:
            prompt = template.fit(given.prompt, variables, ask=True)
        check = RenderCheck(template, self.encoder, self.ends, findings)
        if not row.completions:
            check.prompt(where, prompt, given)
        pieces = [places(template, whole) for whole in wholes]
        kept = [
            written_by_policy(template, prompt.text, whole, written, given.first)
            for whole, written in zip(wholes, pieces, strict=True)
        ]
        unread = dict.fromkeys(name for one in wholes or [prompt] for name in unread_names(template, one))
        findings.add(UNREAD, where, ", ".join(unread), count=bool(unread))
        if row.completions:
            check.completions(where, prompt, wholes, pieces, kept, given)
        return _Texts(where, prompt.text, [whole.text for whole in wholes], kept, False)

    def _examples(
        self, row: Row, texts: _Texts, ids: list[list[int]], head: int, findings: Findings
    ) -> list[UncutExample]:
        if texts.plain:
            ids = [self.encoder.with_left(one) for one in ids]
        prompt, *wholes = ids
        read = zip(texts.wholes or [texts.prompt], wholes or ids, strict=True)
        if unknown := [text for text, one in read if self.encoder.unknown in one]:
            findings.add(UNKNOWN, texts.where, self.encoder.unknown_part(unknown[0]), len(unknown))
        if self.form is None:
            return [UncutExample(np.array(prompt, np.int32))]
        masks = [self._mask(texts, side, head, len(whole)) for side, whole in enumerate(wholes)]
        made, key = [], key_of_prompt(texts.prompt)
        for draft in self.form.drafts(row, self.scale_rewards):
            start = min(common_length(prompt, wholes[side]) for side in draft.sides)
            merged = start < len(prompt) and all(texts.wholes[side].startswith(texts.prompt) for side in draft.sides)
            findings.add(TOKENS_MERGED, texts.where, count=int(merged))
            made.append(
                UncutExample(
                    np.array(prompt[:start], np.int32),
                    tuple(np.array(wholes[side][start:], np.int32) for side in draft.sides),
                    tuple(self._counted(masks[side], start, texts.where, findings) for side in draft.sides),
                    sum(is_blank(row.completions[side], self.encoder.eos) for side in draft.sides),
                    draft.weight,
                    draft.reward,
                    key,
                )
            )
        return made

    def _mask(self, texts: _Texts, side: int, head: int, length: int) -> Ids | None:
        """Return True for each token of a whole text that the policy writes; None if it writes the whole completion."""
        kept = texts.kept[side]
        if kept is None or (self.train_on == "completion" and self.encoder.backend is None):
            return None
        spans = self.encoder.spans([texts.wholes[side][texts.cut :]])[0]
        mask = np.zeros(length, bool)
        mask[head:] = [_overlaps(start + texts.cut, end + texts.cut, kept) for start, end in spans]
        return mask

    def _counted(self, mask: Ids | None, start: int, where: str, findings: Findings) -> Ids | None:
        if mask is None or mask[start:].all():
            return None
        others = int((~mask[start:]).sum())
        masked = self.train_on == "assistant"
        findings.add(MASKED if masked else OTHERS_COUNT, where, count=others, of=len(mask) - start)
        return mask[start:] if masked else None


def _overlaps(start: int, end: int, spans: Sequence[Span]) -> bool:
    """Return True for a token of one of the spans. A token of white space alone may have no length."""
    if start == end:
        return any(first < start <= last for first, last in spans)
    return any(start < last and end > first for first, last in spans)
