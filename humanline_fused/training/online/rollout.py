"""Online rounds: every R optimizer steps the policy samples completions of new prompts, then trains on them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import numpy as np
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from humanline_fused.training.config import HumanlineConfig
from humanline_fused.training.data.advantages import advantages
from humanline_fused.training.data.examples import Example, Sample
from humanline_fused.training.data.forms import keeps_groups
from humanline_fused.training.data.plan import BatchSizes, RoundPlan
from humanline_fused.training.data.prompts import PreparedPrompts
from humanline_fused.training.objectives.objective import Objective
from humanline_fused.training.online.generation import Sampling
from humanline_fused.training.online.logged_samples import COMPLETIONS, sealed
from humanline_fused.training.online.reward import RewardFunction, RolloutError
from humanline_fused.training.online.sampler import Sampler, attempted, gathered
from humanline_fused.training.run import json_lines
from humanline_fused.training.run.clock import Clock
from humanline_fused.training.run.writing import writing

ATTEMPTS = 4
"""Number of attempts to sample a round in which two samples of some prompt differ in reward."""


def fill(examples: Sequence[Example], plan: RoundPlan, *, grouped: bool) -> list[Example]:
    """Return the round's examples by id, repeated from the start if some prompts gave fewer than planned.

    Args:
        examples: the examples made from the samples of one prompt after the other.
        plan: the number of examples of the round and of a step.
        grouped: keep this order. Else neighbours in a step come from different prompts where possible, because KTO
            takes neighbours as mismatched pairs.
    """
    filled = [examples[i % len(examples)] for i in range(plan.examples_per_round)]
    if grouped:
        return filled
    size, ordered = plan.sizes.global_batch, []
    for start in range(0, len(filled), size):
        seen: dict[int, int] = {}
        turns = []
        for example in filled[start : start + size]:
            turns.append(seen.setdefault(id(example.prompt_ids), 0))
            seen[id(example.prompt_ids)] += 1
        ordered += [filled[start + i] for i in sorted(range(len(turns)), key=turns.__getitem__)]
    return ordered


def round_examples(
    groups: Sequence[Sequence[Sample]], prompts: Sequence[Example], objective: Objective, plan: RoundPlan
) -> tuple[list[Example], int]:
    """Return the training examples of a round, and the number of repetitions among them.

    Raises:
        RolloutError: no example is left, because the objective learns only from differences in reward and no two
            samples of a prompt differ.
    """
    made = (objective.form.examples_of(prompts[group[0].prompt], group) for group in groups)
    examples = [example for examples in made for example in examples]
    if not examples:
        raise RolloutError(
            f"{objective.name} learns from samples of one prompt with different rewards, and this round has none: each "
            f"of its {len(groups)} prompts got {len(groups[0])} samples of equal reward, {ATTEMPTS} times over: raise "
            "temperature, or use a reward that distinguishes more samples"
        )
    return fill(examples, plan, grouped=keeps_groups(objective)), max(0, plan.examples_per_round - len(examples))


def round_plan(
    config: HumanlineConfig, objective: Objective, num_prompts: int, sizes: BatchSizes, seed: int
) -> RoundPlan:
    """Return the plan of a config's rounds."""
    assert config.rollout_every is not None
    per_prompt = objective.form.examples_per_prompt(config.num_generations)
    return RoundPlan(num_prompts, per_prompt, config.rollout_every, sizes, seed)


class Rounds:
    """Draws and scores the training samples of the policy at steps 0, R, 2R …

    Every process samples its share of the round's prompts; all processes train on all samples.

    Args:
        plan: the prompts of each round, and the examples of each step.
        objective: its form converts a prompt's samples to examples.
        sampler: draws and scores completions of the dataset's prompts.
        scale: divisor of the advantages, as in :func:`~humanline_fused.training.data.advantages.advantages`.
        path: file that gets one line per sample.
        writes: whether this process writes it.
        rank: rank of this process.
    """

    def __init__(
        self,
        plan: RoundPlan,
        objective: Objective,
        sampler: Sampler,
        *,
        scale: str,
        path: Path,
        writes: bool,
        rank: int,
    ) -> None:
        self.plan, self.objective, self.sampler, self.prompts = plan, objective, sampler, sampler.prompts
        self.scale, self.path, self.writes, self.rank = scale, path, writes, rank
        self.run = ""
        self.number = -1
        self.examples: list[Example] = []
        self.metrics: list[dict[str, float]] = []

    def summary(self) -> str:
        """Return a description of the rounds in one line."""
        plan, size = self.plan, self.sampler.sampling.num_generations
        samples = f"{plan.prompts_per_round} prompts x {size} samples"
        every = "every step" if plan.rollout_every == 1 else f"every {plan.rollout_every} steps"
        return f"rounds: {every} {samples}, scored by {self.sampler.reward.name}"

    def begin(self, step: int, model: PreTrainedModel, clock: Clock) -> bool:
        """Draw and score the samples of ``step``'s round, unless they exist. Collective.

        Returns:
            True if :attr:`examples` are new.

        Raises:
            RolloutError: on every process, if the reward function failed on one, or gave equal rewards to all samples
                of each prompt.
        """
        number = step // self.plan.rollout_every
        if number == self.number:
            return False
        groups = self._sample(number, 0, model, clock)
        for attempt in range(1, ATTEMPTS):
            if self.objective.form.learns_from_ties or any(one.advantage for group in groups for one in group):
                break
            groups = self._sample(number, attempt, model, clock)
        self._take(groups)
        self.number = number
        with writing(self.path, self.path.parent):
            if self.writes:
                lines = (self._line(step, one) for group in groups for one in group)
                json_lines.append(self.path, (sealed(line, self.run) for line in lines))
        return True

    def _sample(self, number: int, attempt: int, model: PreTrainedModel, clock: Clock) -> list[list[Sample]]:
        """Return the scored samples of all processes. An error on one is raised on all, so that none waits forever."""
        places = self.plan.prompts(number)
        share = -(-len(places) // self.plan.sizes.world_size)
        mine = places[self.rank * share : (self.rank + 1) * share]

        def samples() -> list[list[Sample]]:
            with clock.spent_on("generation"):
                drawn = self._draw(mine, model, number, attempt)
            with clock.spent_on("reward"):
                return self._score(mine, drawn)

        outcome = attempted(samples, f"sampling round {number}")
        with clock.spent_on("reward"):
            return [group for groups in gathered(outcome) for group in groups]

    def _draw(self, places: Sequence[int], model: PreTrainedModel, number: int, attempt: int) -> list[list[Tensor]]:
        seed = np.random.SeedSequence([self.plan.seed, number, self.rank, attempt]).generate_state(1)
        return self.sampler.draw(places, model, int(seed[0]))

    def _score(self, places: Sequence[int], drawn: Sequence[Sequence[Tensor]]) -> list[list[Sample]]:
        groups = []
        for place, group, scored in zip(places, drawn, self.sampler.score(places, drawn), strict=True):
            weights = advantages([reward for _, reward in scored], self.scale)
            rows = zip(group, scored, weights, strict=True)
            groups.append([Sample(place, ids, text, reward, weight) for ids, (text, reward), weight in rows])
        return groups

    def _take(self, groups: Sequence[Sequence[Sample]]) -> None:
        self.examples, repeated = round_examples(groups, self.prompts.examples, self.objective, self.plan)
        samples = [one for group in groups for one in group]
        spreads = [pstdev([one.reward for one in group]) for group in groups]
        self.metrics.append(
            {
                "reward": fmean(one.reward for one in samples),
                "reward_std": fmean(spreads),
                "frac_reward_zero_std": fmean(not spread for spread in spreads),
                "completions/mean_length": fmean(len(one.completion_ids) for one in samples),
                "completions/clipped_ratio": fmean(self.sampler.is_cut(one.completion_ids) for one in samples),
                "rollout/repeated": float(repeated),
            }
        )

    def _line(self, step: int, one: Sample) -> dict[str, Any]:
        shown = {"prompt": self.prompts.texts[one.prompt], "completion": one.completion}
        scored = {"reward": one.reward, "advantage": one.advantage}
        ids = {"prompt_index": one.prompt, "completion_ids": one.completion_ids.tolist()}
        return {"step": step, **shown, **scored, **ids}

    def drain(self) -> dict[str, float]:
        """Return the mean metrics of the rounds since the last call."""
        rounds, self.metrics = self.metrics, []
        return {name: fmean(one[name] for one in rounds) for name in rounds[0]} if rounds else {}

    def restart(self, step: int, run: str) -> None:
        """Begin a run at ``step``, and remove samples of later steps from the file.

        Args:
            step: the first optimizer step.
            run: the run's code, as of :func:`~humanline_fused.training.run.identity.code_of`.
        """
        self.number, self.metrics, self.run = -1, [], run
        with writing(self.path, self.path.parent):
            if self.writes:
                json_lines.cut(self.path, lambda line: line.get("step", 0) < step)

    def identity(self) -> dict[str, Any]:
        """Return the settings that a resumed run must share with this one."""
        return {
            "rollout_every": self.plan.rollout_every,
            "per_prompt": self.plan.per_prompt,
            "scale_rewards": self.scale,
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint: the round's samples, as examples, and metrics of the coming log line."""
        rows = [(example.prompt_ids, example.completions, example.weight, example.reward) for example in self.examples]
        return {"number": self.number, "examples": rows, "metrics": self.metrics}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue with the samples of a :meth:`state_dict`."""
        self.number, self.metrics = state["number"], state.get("metrics", [])
        self.examples = [Example(prompt, tuple(completions), *rest) for prompt, completions, *rest in state["examples"]]


def make_rounds(
    config: HumanlineConfig,
    objective: Objective,
    prompts: PreparedPrompts,
    reward: Callable[..., Any],
    tokenizer: PreTrainedTokenizerBase,
    pad_token_id: int,
    sizes: BatchSizes,
    seed: int,
) -> Rounds:
    """Return the rounds of a config; ``seed`` determines the order of the prompts."""
    sampling = Sampling.of(config, pad_token_id, num_generations=config.num_generations)
    return Rounds(
        round_plan(config, objective, len(prompts.examples), sizes, seed),
        objective,
        Sampler(prompts, sampling, RewardFunction(reward, config.reward_timeout), tokenizer),
        scale=config.scale_rewards,
        path=Path(str(config.output_dir)) / COMPLETIONS,
        writes=config.process_index == 0 and not config.dry_run,
        rank=config.process_index,
    )
