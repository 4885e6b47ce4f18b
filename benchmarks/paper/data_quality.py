"""Trainings with diagnostics of their data, taken before the training."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch

from benchmarks.paper.protocol import Comparison
from benchmarks.paper.run_rows import Run
from humanline_fused.perception.diagnostics import clamp_share, effective_sample_size, surplus_surprisal
from humanline_fused.tiny import Setting
from humanline_fused.tiny.policies import gumbel

PROMPTS = 256
"""Prompts of each seed that the data are judged by."""


@dataclass(frozen=True)
class DataRun(Run):
    """A training and what could be known of its data beforehand, by seed.

    Attributes:
        data_logp: mean log-prob of the data's tokens under the initial policy, nats.
        data_surplus: surplus surprisal under it, nats per token.
        data_kl: KL of the writer from the initial policy, over the data's prefixes, nats per token.
        data_ess: effective sample size of the answers' weights under the initial policy, as a share.
        data_tail: share of tokens whose log-ratio of writer and initial policy lies outside ±1.5 nats.
        data_reward: mean reward of the data, without the noise of a noisy reward.
        data_contrast: share of prompts that have answers of different reward, noise included.
    """

    data_logp: float | None = None
    data_surplus: float | None = None
    data_kl: float | None = None
    data_ess: float | None = None
    data_tail: float | None = None
    data_reward: float | None = None
    data_contrast: float | None = None


DIAGNOSTICS = tuple(field.name for field in fields(DataRun) if field.name.startswith("data_"))


def with_diagnostics(rows: Sequence[Run], comparison: Comparison, writer: Setting) -> list[DataRun]:
    """Return the rows with the diagnostics of their seeds' data.

    Args:
        rows: of the comparison.
        comparison: its start and sources write the data.
        writer: its source and temperature count.
    """
    seeds = sorted({row.seed for row in rows})
    by_seed = dict(zip(seeds, diagnostics(comparison, writer, seeds), strict=True))
    names = [field.name for field in fields(Run)]
    found = []
    for row in rows:
        columns: dict[str, Any] = {name: getattr(row, name) for name in names}
        columns |= by_seed[row.seed]
        found.append(DataRun(**columns))
    return found


@torch.no_grad()
def diagnostics(comparison: Comparison, writer: Setting, seeds: Sequence[int]) -> list[dict[str, float]]:
    """Return the diagnostics of each seed's data, by column."""
    policies, writers = comparison.writers(seeds)
    task, size = policies.task, comparison.trainings.samples
    generators = [torch.Generator().manual_seed(31_000_000 + seed) for seed in seeds]
    prompts = task.prompts(generators, PROMPTS).repeat_interleave(size, 1)
    noise = gumbel(generators, (prompts.shape[1], task.length, task.vocabulary))
    flips = torch.stack([torch.rand(prompts.shape[1], generator=g) < comparison.trainings.noise for g in generators])
    features, source = task.encode(prompts), writers[writer.source]
    answers = policies.sample(source, features, noise, torch.full((len(seeds),), writer.temperature))
    mask, rewards = task.loss_mask(answers), task.rewards(prompts, answers)
    seen = torch.where(flips, 1 - rewards, rewards).unflatten(1, (PROMPTS, size))
    contrast = seen.amax(-1) > seen.amin(-1)
    start = policies.logits(writers[0], features, answers).log_softmax(-1)
    written = (policies.logits(source, features, answers) / writer.temperature).log_softmax(-1)
    entropy, kl = -(start.exp() * start).sum(-1), (written.exp() * (written - start)).sum(-1)
    logp, source_logp = (of.gather(-1, answers[..., None]).squeeze(-1) for of in (start, written))
    weights = (logp - source_logp).where(mask, 0.0).sum(-1)
    found = []
    for s in range(len(seeds)):
        counts = mask[s]
        values = {
            "data_logp": logp[s][counts].mean(),
            "data_surplus": surplus_surprisal(logp[s], entropy[s], counts),
            "data_kl": kl[s][counts].mean(),
            "data_ess": effective_sample_size(weights[s]),
            "data_tail": clamp_share(logp[s] - source_logp[s], counts),
            "data_reward": rewards[s].mean(),
            "data_contrast": contrast[s].float().mean(),
        }
        found.append({name: float(f"{float(value):.5g}") for name, value in values.items()})
    return found
