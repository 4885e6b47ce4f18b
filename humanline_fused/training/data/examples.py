"""Examples: token ids to learn from, and the samples of a round that become examples."""

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from humanline_fused.training.data.records import Text


@dataclass(frozen=True)
class Example:
    """A unit of training data: a pair, or a completion.

    Attributes:
        prompt_ids: int32.
        completions: int32 each; one for each side of the data's form.
        weight: labelled data: 1 desirable, 0 undesirable; groups: the advantage; pairs: unused.
        reward: groups: as it was given; else unused.
    """

    prompt_ids: Tensor
    completions: tuple[Tensor, ...]
    weight: float = 0.0
    reward: float = 0.0


@dataclass(frozen=True)
class Sample:
    """A completion of one round.

    Attributes:
        prompt: index of its prompt in the dataset.
        completion_ids: int32.
        completion: as text, or as the message of an assistant.
        reward: from the reward function.
        advantage: against the other samples of its prompt.
    """

    prompt: int
    completion_ids: Tensor
    completion: Text
    reward: float
    advantage: float


def fingerprint(examples: Sequence[Example]) -> int:
    """CRC-32 over token ids, lengths, weights and rewards: data that differ are told apart."""
    code = 0
    for example in examples:
        for ids in (example.prompt_ids, *example.completions):
            code = zlib.crc32(ids.numpy().tobytes(), zlib.crc32(len(ids).to_bytes(8, "little"), code))
        code = zlib.crc32(struct.pack("<dd", example.weight, example.reward), code)
    return code
