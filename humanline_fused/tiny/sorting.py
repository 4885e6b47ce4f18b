"""Task of the tiny policies: write the digits of a prompt in ascending order, with an exact reward."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot


@dataclass(frozen=True)
class Sorting:
    """Sizes of the task.

    Attributes:
        digits: digits of a prompt.
        alphabet: number of different digits.
        filler: maximum number of free tokens after the answer, which do not change the reward; 0 for answers of fixed
            length, otherwise the policy also writes the end of its answer.
    """

    digits: int = 5
    alphabet: int = 8
    filler: int = 0

    @property
    def vocabulary(self) -> int:
        """Number of tokens: the digits and, with ``filler``, the free token and the end."""
        return self.alphabet + (2 if self.filler else 0)

    @property
    def end(self) -> int:
        """Id of the token that ends an answer with ``filler``."""
        return self.alphabet + 1

    @property
    def length(self) -> int:
        """Maximum tokens of an answer."""
        return self.digits + (self.filler + 1 if self.filler else 0)

    def prompts(self, generators: Sequence[torch.Generator], number: int) -> Tensor:
        """Draw ``number`` prompts for each generator: [M, number, digits]."""
        size = (number, self.digits)
        return torch.stack([torch.randint(self.alphabet, size, generator=generator) for generator in generators])

    def encode(self, prompts: Tensor) -> Tensor:
        """Return the one-hot digits of prompts: [M, N, digits] to [M, N, digits · alphabet]."""
        return one_hot(prompts, self.alphabet).float().flatten(-2)

    def answers(self, prompts: Tensor) -> Tensor:
        """Return the right answers, ended at once if answers have an end: [M, N, digits] to [M, N, length]."""
        right = prompts.sort(-1).values
        ends = right.new_full((*right.shape[:-1], self.length - self.digits), self.end)
        return torch.cat([right, ends], -1)

    def loss_mask(self, answers: Tensor) -> Tensor:
        """Return which tokens count: those up to and including the first end."""
        if not self.filler:
            return torch.ones_like(answers, dtype=torch.bool)
        ends = (answers == self.end).long()
        return (ends.cumsum(-1) - ends) == 0

    def rewards(self, prompts: Tensor, answers: Tensor) -> Tensor:
        """Return 1 for each right answer, 0 for the others, whatever follows it: [M, N].

        >>> Sorting(digits=3).rewards(torch.tensor([[[2, 0, 1], [2, 0, 1]]]), torch.tensor([[[0, 1, 2], [2, 1, 0]]]))
        tensor([[1., 0.]])
        """
        return (prompts.sort(-1).values == answers[..., : self.digits]).all(-1).float()


SORTING = Sorting()
