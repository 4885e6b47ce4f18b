"""Training examples as token ids, and the samples of a round that become examples."""

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from humanline_fused.training.data.rows.records import Text


@dataclass(frozen=True)
class Example:
    """A unit of training data: a pair, or a completion.

    Attributes:
        prompt_ids: [n], int32.
        completions: token ids, [n] each, int32; one completion for each side of the data's form.
        masks: True for the tokens of each completion that count, [n] each, bool; empty if all do.
        weight: labelled data: 1 desirable, 0 undesirable; groups: the advantage; pairs: unused.
        reward: groups: the given reward; else unused.
    """

    prompt_ids: Tensor
    completions: tuple[Tensor, ...]
    weight: float = 0.0
    reward: float = 0.0
    masks: tuple[Tensor, ...] = ()

    @property
    def sides(self) -> list[tuple[Tensor, Tensor | None]]:
        """Each completion with its mask; None if all of its tokens count."""
        return list(zip(self.completions, self.masks or [None] * len(self.completions), strict=True))

    @property
    def length(self) -> int:
        """Tokens of the prompt and the longest completion."""
        return len(self.prompt_ids) + max(map(len, self.completions), default=0)


@dataclass(frozen=True)
class Sample:
    """A completion of one round.

    Attributes:
        prompt: index of its prompt in the dataset.
        completion_ids: [n], int32.
        completion: text, or a list with the assistant's message.
        reward: result of the reward function.
        advantage: advantage over the other samples of the prompt.
    """

    prompt: int
    completion_ids: Tensor
    completion: Text
    reward: float
    advantage: float


def fingerprint(examples: Sequence[Example]) -> int:
    """Return a CRC-32 of token ids, lengths, masks, weights and rewards, to detect changed data."""
    code = 0
    for example in examples:
        for ids in (example.prompt_ids, *example.completions, *example.masks):
            code = zlib.crc32(ids.numpy().tobytes(), zlib.crc32(len(ids).to_bytes(8, "little"), code))
        code = zlib.crc32(struct.pack("<dd", example.weight, example.reward), code)
    return code
