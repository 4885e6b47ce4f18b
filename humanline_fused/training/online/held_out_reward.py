"""The reward of the policy's own answers to the held-out prompts, for an evaluation."""

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from humanline_fused.printing import counted
from humanline_fused.training.config import HumanlineConfig
from humanline_fused.training.data.prompts import PreparedPrompts
from humanline_fused.training.data.rows.columns import Columns
from humanline_fused.training.data.rows.records import ALIASES, ALL_COLUMNS
from humanline_fused.training.online.generation import Sampling
from humanline_fused.training.online.reward import RewardFunction, RolloutError
from humanline_fused.training.online.sampler import Sampler, attempted, gathered

METRICS = ("reward", "completions/clipped_ratio")
"""Metrics of the answers of an evaluation."""


class HeldOutReward:
    """Mean reward of one sample of the policy for every held-out prompt.

    Every process samples its share of the prompts. The random numbers are the same each time, so that two evaluations
    of as many processes differ by the policy alone.

    Args:
        sampler: draws and scores.
        places: the prompts to answer, by their places in the sampler's.
        seed: of the random numbers.
        rank, world_size: of this process, and the number of processes.
        most: answer the first of the places alone, at most so many; default all.
    """

    def __init__(
        self, sampler: Sampler, places: Sequence[int], seed: int, *, rank: int, world_size: int, most: int | None = None
    ) -> None:
        self.sampler, self.places, self.asked, self.seed = sampler, places, places[:most], seed
        self.rank, self.world_size = rank, world_size

    def summary(self) -> str:
        """Return a description in one line."""
        prompts, rows = len(self.places), len(self.sampler.prompts.examples)
        of_rows = f" of {rows} rows" if rows > prompts else ""
        now = f", this dry run {len(self.asked)} of them" if len(self.asked) < prompts else ""
        return f"an evaluation answers {counted(prompts, 'prompt')}{of_rows}{now}, scored by {self.sampler.reward.name}"

    def measure(self, model: PreTrainedModel) -> dict[str, float]:
        """Return the mean reward of the answers of ``model``, and the share of them cut before their end. Collective.

        Raises:
            RolloutError: on every process, if sampling or the reward function failed on one.
        """
        mine = self.asked[self.rank :: self.world_size]

        def answers() -> list[tuple[float, bool]]:
            seed = np.random.SeedSequence([self.seed, self.rank]).generate_state(1)
            drawn = self.sampler.draw(mine, model, int(seed[0]))
            scored = self.sampler.score(mine, drawn)
            return [(reward, self.sampler.is_cut(ids)) for [ids], [(_, reward)] in zip(drawn, scored, strict=True)]

        try:
            everywhere = gathered(attempted(answers, "sampling the answers"))
        except RolloutError as error:
            columns = ", ".join(self.sampler.prompts.columns[0]) or "none"
            raise RolloutError(
                f"eval_dataset: expected a reward for an answer to each prompt, with its columns {columns} "
                f"(eval_answers=False draws no answers): {error}"
            ) from error
        measured = zip(*(answer for answers in everywhere for answer in answers), strict=True)
        return dict(zip(METRICS, map(fmean, measured), strict=True))


def places_to_answer(prompts: PreparedPrompts, columns: Columns | None) -> list[int]:
    """Return the places of the prompts, each once for each set of its other columns.

    Columns of completions, and of their labels or rewards, do not count: several completions of a prompt are no reason
    to answer it several times. Of rows that differ in these alone the reward function gets those of the first.

    Args:
        prompts: the prompts of a dataset.
        columns: the setting.
    """
    sources = {target: [given] if isinstance(given, str) else given or [] for target, given in (columns or {}).items()}
    own = {*ALL_COLUMNS, *ALIASES.values()}
    own |= {name for target, names in sources.items() if target in own for name in names}
    first: dict[tuple[bytes, str], int] = {}
    for place, (example, given) in enumerate(zip(prompts.examples, prompts.columns, strict=True)):
        others = repr(sorted(repr(item) for item in given.items() if item[0] not in own))
        first.setdefault((example.prompt_ids.numpy().tobytes(), others), place)
    return list(first.values())


def make_held_out_reward(
    config: HumanlineConfig,
    prompts: PreparedPrompts | None,
    reward: Callable[..., Any] | None,
    tokenizer: PreTrainedTokenizerBase,
    pad_token_id: int,
) -> HeldOutReward | None:
    """Return the reward of the answers to ``prompts``; None without a reward function or held-out prompts.

    A dry run answers one batch on each process.
    """
    if reward is None or prompts is None:
        return None
    assert not isinstance(config.columns, str)
    sampling = Sampling.of(config, pad_token_id, num_generations=1)
    sampler = Sampler(prompts, sampling, RewardFunction(reward, config.reward_timeout), tokenizer)
    return HeldOutReward(
        sampler,
        places_to_answer(prompts, config.columns),
        config.seed,
        rank=config.process_index,
        world_size=config.world_size,
        most=sampling.batch_size * config.world_size if config.dry_run else None,
    )
