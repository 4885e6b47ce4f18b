"""Autoregressive policies with two hidden layers, many at once: every parameter is [M, in, out], for M policies."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from humanline_fused.tiny.sorting import SORTING, Sorting

Parameters = dict[str, Tensor]
"""``input`` [M, prompt + answer + position features, H], ``hidden`` [M, H, H], ``output`` [M, H, V], and the biases
``input_bias``, ``hidden_bias`` [M, 1, H], ``output_bias`` [M, 1, V]."""


@dataclass(frozen=True)
class Policies:
    """Architecture of the policies: features of the prompt, of the answer so far and of the position, then two layers.

    Attributes:
        task: the task.
        hidden: H, width of both layers.
    """

    task: Sorting = SORTING
    hidden: int = 48

    @property
    def num_parameters(self) -> int:
        """Parameters of one policy."""
        width, vocabulary = self.hidden, self.task.vocabulary
        return (sum(self._features) + width + 2) * width + (width + 1) * vocabulary

    @property
    def _features(self) -> tuple[int, int, int]:
        task = self.task
        return task.digits * task.alphabet, task.length * task.vocabulary, task.length

    def initial(self, seeds: Sequence[int]) -> Parameters:
        """Return random parameters; a policy's depend on its seed alone."""
        made = []
        for seed in seeds:
            generator = torch.Generator().manual_seed(seed)
            sizes = {
                "input": (sum(self._features), self.hidden, 1 / math.sqrt(2 * self.task.digits)),
                "hidden": (self.hidden, self.hidden, math.sqrt(2 / self.hidden)),
                "output": (self.hidden, self.task.vocabulary, 0.1 / math.sqrt(self.hidden)),
            }
            one = {name: scale * torch.randn(a, b, generator=generator) for name, (a, b, scale) in sizes.items()}
            made.append(one | {f"{name}_bias": torch.zeros(1, b) for name, (_, b, _) in sizes.items()})
        return {name: torch.stack([one[name] for one in made]) for name in made[0]}

    def logits(self, parameters: Parameters, prompts: Tensor, answers: Tensor) -> Tensor:
        """Return the logits of every token of given answers.

        Args:
            parameters: of M policies.
            prompts: [M, N, prompt features], as :meth:`Sorting.encode` gives them.
            answers: [M, N, T], int64.

        Returns:
            [M, N, T, V]; entry t sees the answer's tokens before t.
        """
        runs, number, length = answers.shape
        vocabulary, width = self.task.vocabulary, self.hidden
        of_prompt, of_answer, of_position = parameters["input"].split(self._features, 1)
        index = (torch.arange(length) * vocabulary + answers).view(runs, number * length, 1)
        written = of_answer.gather(1, index.expand(-1, -1, width)).view(runs, number, length, width)
        before = written.cumsum(2) - written
        start = torch.baddbmm(parameters["input_bias"], prompts, of_prompt)[:, :, None]
        states = start + before + of_position[:, None]
        logits = self._layers(parameters, states.view(runs, number * length, width))
        return logits.view(runs, number, length, vocabulary)

    @torch.no_grad()
    def sample(self, parameters: Parameters, prompts: Tensor, noise: Tensor, temperature: Tensor) -> Tensor:
        """Return one answer for each prompt, [M, N, T].

        Args:
            parameters, prompts: as of :meth:`logits`.
            noise: standard Gumbel noise, [M, N, T, V]; the answer is a function of it.
            temperature: [M].
        """
        of_prompt, of_answer, of_position = parameters["input"].split(self._features, 1)
        states = torch.baddbmm(parameters["input_bias"], prompts, of_prompt)
        drawn = []
        for position in range(noise.shape[2]):
            logits = self._layers(parameters, states + of_position[:, position : position + 1])
            token = (logits / temperature[:, None, None] + noise[:, :, position]).argmax(-1)
            index = (position * self.task.vocabulary + token)[..., None].expand(-1, -1, self.hidden)
            states = states + of_answer.gather(1, index)
            drawn.append(token)
        return torch.stack(drawn, -1)

    def _layers(self, parameters: Parameters, states: Tensor) -> Tensor:
        hidden = torch.baddbmm(parameters["hidden_bias"], states.relu(), parameters["hidden"]).relu()
        return torch.baddbmm(parameters["output_bias"], hidden, parameters["output"])

    @torch.no_grad()
    def expected_reward(self, parameters: Parameters, prompts: Tensor) -> Tensor:
        """Return the mean probability of the right answer, [M]: the expected reward, without sampling noise.

        Args:
            parameters: of M policies.
            prompts: digits, [M, N, digits].
        """
        answers = self.task.answers(prompts)
        logp = chosen_logp(self.logits(parameters, self.task.encode(prompts), answers), answers)
        return logp[..., : self.task.digits].sum(-1).exp().mean(-1)


def chosen_logp(logits: Tensor, answers: Tensor) -> Tensor:
    """Return the log-prob of each token of the answers, [M, N, T], nats."""
    return logits.log_softmax(-1).gather(-1, answers[..., None]).squeeze(-1)


def gumbel(generators: Sequence[torch.Generator], shape: Sequence[int]) -> Tensor:
    """Draw standard Gumbel noise for each generator: [M, *shape]."""
    drawn = [torch.empty(tuple(shape)).exponential_(generator=generator) for generator in generators]
    return -torch.stack(drawn).clamp_min(1e-20).log()


def rows(parameters: Parameters, index: Tensor) -> Parameters:
    """Return the policies of an index."""
    return {name: value[index] for name, value in parameters.items()}


def overwritten(parameters: Parameters, where: Tensor, by: Parameters) -> Parameters:
    """Return the parameters, with those of ``by`` where ``where`` [M] is True."""
    return {name: torch.where(where[:, None, None], by[name], value) for name, value in parameters.items()}
