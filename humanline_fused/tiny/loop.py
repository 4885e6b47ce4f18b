"""Training of many tiny policies at once: one vectorised step for all settings and seeds.

A policy's curve depends on its setting and seed only, not on the others that train beside it. Settings of one seed see
the same prompts and the same noise of sampling, so that their differences are paired.
"""

import time
from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from humanline_fused.tiny.adamw import AdamW, clipped_gradients
from humanline_fused.tiny.losses import LOSSES, Samples, Scored, kept_gradient
from humanline_fused.tiny.policies import Parameters, chosen_logp, gumbel, overwritten, rows
from humanline_fused.tiny.supervised import held_out_prompts
from humanline_fused.tiny.trainings import Curves, Setting, Trainings

WARM_UP = 0.1
"""Share of the steps over which the learning rate rises."""

AT_ONCE = 32
"""Policies that train at once: as many as a core's cache holds."""


def train(
    trainings: Trainings,
    settings: Sequence[Setting],
    seeds: Sequence[int],
    start: Parameters,
    sources: Sequence[Parameters] = (),
    at_once: int = AT_ONCE,
) -> Curves:
    """Train a policy for every setting and seed.

    Args:
        trainings: what they share.
        settings: A settings.
        seeds: S seeds, of prompts and samples.
        start: initial policies, one for each seed.
        sources: other policies that may write the samples, one for each seed.
        at_once: policies that train at once; more need more memory.

    Raises:
        ValueError: no setting or seed, other numbers of policies than seeds, a source that is not there, or fresh
            samples where later epochs repeat the first.
    """
    if not settings or not seeds:
        raise ValueError(f"expected at least one setting and seed, got {len(settings)} and {len(seeds)}")
    for given in (start, *sources):
        if len(given["input"]) != len(seeds):
            raise ValueError(f"expected a policy for each of {len(seeds)} seeds, got {len(given['input'])}")
    for setting in settings:
        if not 0 <= setting.source <= len(sources):
            raise ValueError(f"{setting.name}: expected a source from 0 to {len(sources)}, got {setting.source}")
        if setting.resample_every and trainings.epochs > 1:
            raise ValueError(f"{setting.name}: expected resample_every=None with {trainings.epochs} epochs")
    size = max(1, at_once // len(seeds))
    parts = [settings[first : first + size] for first in range(0, len(settings), size)]
    return Curves.joined([_Loop(trainings, part, seeds, start, sources).run() for part in parts])


class _Loop:
    """State of trainings, run ``a · S + s`` being setting a with seed s."""

    def __init__(
        self,
        trainings: Trainings,
        settings: Sequence[Setting],
        seeds: Sequence[int],
        start: Parameters,
        sources: Sequence[Parameters],
    ) -> None:
        self.trainings, self.settings, self.seeds = trainings, settings, seeds
        self.policies, self.task = trainings.policies, trainings.policies.task
        self.select, self.loss = LOSSES[trainings.loss]
        self.runs = [(setting, s) for setting in settings for s in range(len(seeds))]
        stacked = [start, *sources]
        writers = {name: torch.stack([one[name] for one in stacked]) for name in start}
        of_run = torch.tensor([(setting.source, s) for setting, s in self.runs]).unbind(1)
        seed_of_run = of_run[1]
        self.start = rows(start, seed_of_run)
        self.policy = {name: value.clone() for name, value in self.start.items()}
        self.writer = {name: value[of_run] for name, value in writers.items()}
        follows = self._flags([s.follows_data for s in settings])
        self.reference = overwritten(self.start, follows, self.writer)
        self.generators = [torch.Generator().manual_seed(1_000_003 * (seed + 1)) for seed in seeds]
        self.seed_of_run, self.follows = seed_of_run, follows
        self.token_generators = [torch.Generator().manual_seed(5_000_003 * (seed + 1)) for seed in seeds]
        self.gammas = torch.stack(
            [self._numbers([s.gamma_P for s in settings]), self._numbers([s.gamma_R for s in settings])], 1
        )
        self.temperature = self._numbers([s.temperature for s in settings])
        self.norm = self._numbers([s.max_grad_norm for s in settings])
        self.optimizer = AdamW(self.policy, self._numbers([s.learning_rate for s in settings]))
        self.kept: list[Samples] = []
        self.held_out = held_out_prompts(self.policies, seeds)
        self.series: dict[str, list[Tensor]] = {
            name: [] for name in ("surplus", "mean_ratio", "logp", "ref_logp", "clamped", "norm", "reward", "length")
        }
        self.spent = {"sampling": 0.0, "training": 0.0}
        self.clock: list[tuple[float, float]] = []

    def _numbers(self, values: Sequence[float]) -> Tensor:
        return torch.tensor(values).repeat_interleave(len(self.seeds))

    def _flags(self, values: Sequence[bool]) -> Tensor:
        return torch.tensor(values).repeat_interleave(len(self.seeds))

    def run(self) -> Curves:
        trainings, evaluated = self.trainings, []
        for step in range(trainings.steps):
            if step % trainings.evaluate_every == 0:
                evaluated.append(step)
                self._evaluate()
            self._step(step)
        evaluated.append(trainings.steps)
        self._evaluate()
        shape = (len(self.settings), len(self.seeds))
        series = {name: torch.stack(values, -1).unflatten(0, shape) for name, values in self.series.items() if values}
        seconds = torch.tensor(self.clock).T[:, None].expand(-1, len(self.settings), -1) / len(self.runs)
        return Curves(
            settings=self.settings,
            seeds=self.seeds,
            steps=evaluated,
            reward=series["reward"],
            length=series.get("length"),
            surplus=series["surplus"],
            mean_ratio=series["mean_ratio"],
            logp=series["logp"],
            ref_logp=series["ref_logp"],
            unclamped=1 - series["clamped"].mean(-1),
            grad_norm=series["norm"].mean(-1),
            parameters=self.policy,
            sampling_seconds=seconds[0],
            training_seconds=seconds[1],
        )

    def _evaluate(self) -> None:
        self.clock.append((self.spent["sampling"], self.spent["training"]))
        prompts = self.held_out[self.seed_of_run]
        self.series["reward"].append(self.policies.expected_reward(self.policy, prompts))
        if self.task.filler:
            generators = [torch.Generator().manual_seed(4_000_000 + seed) for seed in self.seeds]
            noise = gumbel(generators, (prompts.shape[1], self.task.length, self.task.vocabulary))[self.seed_of_run]
            ones = torch.ones(len(self.runs))
            answers = self.policies.sample(self.policy, self.task.encode(prompts), noise, ones)
            self.series["length"].append(self.task.loss_mask(answers).float().sum(-1).mean(-1))

    def _step(self, step: int) -> None:
        began = time.process_time()
        fresh = self._flags([bool(s.resample_every) and step % (s.resample_every or 1) == 0 for s in self.settings])
        if step and fresh.any():
            self.writer = overwritten(self.writer, fresh, self.policy)
            self.reference = overwritten(self.reference, fresh & self.follows, self.policy)
        samples = self._samples(step)
        drawn = time.process_time()
        for parameter in self.policy.values():
            parameter.requires_grad_()
        losses = self._losses(samples)
        gradients, norm = clipped_gradients(losses, self.policy, self.norm)
        for parameter in self.policy.values():
            parameter.requires_grad_(False)
        # The sync copies the policy after backward and before the update (arXiv 2509.24207, section 4).
        synced = self._flags([bool(s.sync_every) and step % (s.sync_every or 1) == 0 for s in self.settings])
        if synced.any():
            self.reference = overwritten(self.reference, synced, self.policy)
        self.optimizer.step(gradients, min(1.0, (step + 1) / max(1.0, WARM_UP * self.trainings.steps)))
        self.series["norm"].append(norm)
        self.spent["sampling"] += drawn - began
        self.spent["training"] += time.process_time() - drawn

    def _samples(self, step: int) -> Samples:
        """Return the samples of a step; in a later epoch, those of the first."""
        trainings, task = self.trainings, self.task
        in_epoch = trainings.steps // trainings.epochs
        if step >= in_epoch and trainings.epochs > 1:
            return self.kept[step % in_epoch]
        drawn = (trainings.drawn or trainings.prompts) if trainings.choose else trainings.prompts
        prompts = task.prompts(self.generators, drawn).repeat_interleave(trainings.samples, 1)
        noise = gumbel(self.generators, (prompts.shape[1], task.length, task.vocabulary))
        flips = torch.stack([torch.rand(prompts.shape[1], generator=g) < trainings.noise for g in self.generators])
        # Runs with the same writer, seed and temperature share their samples.
        index, inverse = distinct([self._written_by(number) for number in range(len(self.runs))])
        seed = self.seed_of_run[index]
        features = task.encode(prompts)
        answers = self.policies.sample(rows(self.writer, index), features[seed], noise[seed], self.temperature[index])
        rewards = task.rewards(prompts[seed], answers)
        rewards = torch.where(flips[seed], 1 - rewards, rewards)
        samples = Samples(features[seed], answers, task.loss_mask(answers), rewards, trainings.samples)
        if trainings.choose:
            first = rows(self.start, index)
            grouped = [values.unflatten(1, (drawn, -1)) for values in (prompts[seed], answers)]
            chosen = trainings.choose(self.policies, first, grouped[0][:, :, 0], grouped[1])
            inside = torch.arange(trainings.samples)
            samples = samples.taken((chosen[..., None] * trainings.samples + inside).flatten(1))
        tensors = samples.prompts, samples.answers, samples.loss_mask, samples.rewards
        prompts, answers, mask, rewards = (values[inverse] for values in tensors)
        samples = Samples(prompts, answers, mask, rewards, trainings.samples)
        if trainings.epochs > 1:
            self.kept.append(samples)
        return samples

    def _written_by(self, number: int) -> Hashable:
        setting, seed = self.runs[number]
        if setting.resample_every:
            return number
        return seed, setting.source, setting.temperature

    def _losses(self, samples: Samples) -> Tensor:
        seen = self.select(samples)
        logp = chosen_logp(self.policies.logits(self.policy, seen.prompts, seen.answers), seen.answers)
        with torch.no_grad():
            ref_log_p = self.policies.logits(self.reference, seen.prompts, seen.answers).log_softmax(-1)
            ref_logp = ref_log_p.gather(-1, seen.answers[..., None]).squeeze(-1)
            self._record(logp.detach(), ref_logp, -(ref_log_p.exp() * ref_log_p).sum(-1), seen.loss_mask)
        settings = {
            name: self._numbers([getattr(setting, name) for setting in self.settings])
            for name in ("beta", "epsilon", "log_epsilon_P", "log_epsilon_R")
        }
        kl = self._kl(samples, settings) if self.trainings.loss == "kto" else None
        stopped = torch.zeros(())
        if self.gammas.any():
            logp, stopped = kept_gradient(logp, ref_logp, seen.loss_mask, self._draws(logp.shape[1:]))
        losses, clamped = self.loss(Scored(seen, logp, ref_logp, kl, **settings))
        self.series["clamped"].append(clamped.detach() + stopped)
        return losses

    def _draws(self, shape: Sequence[int]) -> Tensor:
        """Return log B_P and log B_R of each policy's tokens, [M, 2, N, T], from uniform numbers that a seed shares."""
        uniform = [torch.rand((2, *shape), generator=g, dtype=torch.float64) for g in self.token_generators]
        return torch.stack(uniform).log()[self.seed_of_run] / self.gammas[..., None, None]

    def _record(self, logp: Tensor, ref_logp: Tensor, entropy: Tensor, mask: Tensor) -> None:
        def mean(values: Tensor) -> Tensor:
            return values.where(mask, 0.0).sum((1, 2)) / mask.sum((1, 2)).clamp(min=1)

        self.series["surplus"].append(mean(-ref_logp - entropy))
        self.series["mean_ratio"].append(mean((logp - ref_logp).exp()))
        self.series["logp"].append(mean(logp))
        self.series["ref_logp"].append(mean(ref_logp))

    @torch.no_grad()
    def _kl(self, samples: Samples, settings: dict[str, Tensor]) -> Tensor:
        """Return KTO's z0 of each policy, from every prompt with an answer to the next one."""
        pairs = samples.mismatched()
        logp, ref_logp = (
            chosen_logp(self.policies.logits(one, pairs.prompts, pairs.answers), pairs.answers)
            for one in (self.policy, self.reference)
        )
        low, high = (settings[name][:, None, None] for name in ("log_epsilon_P", "log_epsilon_R"))
        ratio = (logp - ref_logp).where(pairs.loss_mask, 0.0)
        return torch.minimum(torch.maximum(ratio, low), high).sum(-1).mean(-1).clamp(min=0)


def distinct(keys: Sequence[Hashable]) -> tuple[Tensor, Tensor]:
    """Return the index of each key's first occurrence, and for every key the place of its first in that index.

    >>> distinct(["a", "b", "a"])
    (tensor([0, 1]), tensor([0, 1, 0]))
    """
    first = {key: number for number, key in reversed(list(enumerate(keys)))}
    index = sorted(first.values())
    return torch.tensor(index), torch.tensor([index.index(first[key]) for key in keys])
