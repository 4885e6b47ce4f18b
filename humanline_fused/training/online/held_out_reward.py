"""The reward of the policy's own answers to the held-out prompts, for an evaluation."""

from collections.abc import Callable
from statistics import fmean
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from humanline_fused.training.config import HumanlineConfig
from humanline_fused.training.data.prompts import PreparedPrompts
from humanline_fused.training.online.generation import Sampling
from humanline_fused.training.online.reward import RewardFunction
from humanline_fused.training.online.sampler import Sampler, attempted, gathered


class HeldOutReward:
    """Mean reward of one sample of the policy for every held-out prompt.

    Every process samples its share of the prompts. The random numbers are the same each time, so that two evaluations
    differ by the policy alone.

    Args:
        sampler: draws and scores.
        seed: of the random numbers.
        rank, world_size: of this process, and the number of processes.
    """

    def __init__(self, sampler: Sampler, seed: int, *, rank: int, world_size: int) -> None:
        self.sampler, self.seed, self.rank, self.world_size = sampler, seed, rank, world_size
        first: dict[bytes, int] = {}
        for place, example in enumerate(sampler.prompts.examples):
            first.setdefault(example.prompt_ids.numpy().tobytes(), place)
        self.places = list(first.values())

    def summary(self) -> str:
        """Return a description in one line."""
        return f"an evaluation answers {len(self.places)} prompts, scored by {self.sampler.reward.name}"

    def mean(self, model: PreTrainedModel) -> float:
        """Return the mean reward of the answers of ``model``. Collective.

        Raises:
            RolloutError: on every process, if sampling or the reward function failed on one.
        """
        mine = self.places[self.rank :: self.world_size]

        def rewards() -> list[float]:
            seed = np.random.SeedSequence([self.seed, self.rank]).generate_state(1)
            drawn = self.sampler.draw(mine, model, int(seed[0]))
            return [reward for group in self.sampler.score(mine, drawn) for _, reward in group]

        everywhere = gathered(attempted(rewards, "sampling answers to the held-out prompts"))
        return fmean(reward for rewards in everywhere for reward in rewards)


def make_held_out_reward(
    config: HumanlineConfig,
    prompts: PreparedPrompts | None,
    reward: Callable[..., Any] | None,
    tokenizer: PreTrainedTokenizerBase,
    pad_token_id: int,
) -> HeldOutReward | None:
    """Return the reward of the answers to ``prompts``; None without a reward function or held-out prompts."""
    if reward is None or prompts is None:
        return None
    sampling = Sampling.of(config, pad_token_id, num_generations=1)
    sampler = Sampler(prompts, sampling, RewardFunction(reward, config.reward_timeout), tokenizer)
    return HeldOutReward(sampler, config.seed, rank=config.process_index, world_size=config.world_size)
