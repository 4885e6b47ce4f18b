"""Humanline sampling of an optimizer step: maxima over all its tokens, and draws that belong to its examples.

So the tokens that are rejected do not depend on how the step is cut into micro-batches and ranks, and a resumed run
rejects those of the uninterrupted one.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from humanline_fused.perception.sampling import log_draws, log_maxima
from humanline_fused.training.data.batch import Batch, sequences
from humanline_fused.training.data.examples import Example
from humanline_fused.training.data.forms import Learner
from humanline_fused.training.data.plan import MicroBatch
from humanline_fused.training.scoring import Scorer
from humanline_fused.types import HumanlineSampling


def with_sampling(
    scorer: Scorer,
    policy: nn.Module,
    batches: Sequence[Batch],
    window: Sequence[MicroBatch],
    examples: Sequence[Example],
    step: int,
) -> list[Batch]:
    """Return this rank's micro-batches of a step with their draws and the maxima of the whole step.

    The policy scores them once more, before the step's first backward. All ranks must call it.

    Args:
        batches: with ``ref_logp``.
        window: their examples, indices of ``examples``.
    """
    config = scorer.config
    sampling = config.humanline_sampling
    assert sampling is not None
    scored = scorer.score(policy, [batch.alone for batch in batches])
    ratios, masks = [], []
    for batch, now in zip(batches, scored, strict=True):
        assert batch.ref_logp is not None
        ratios.append((now["ref_logp"] - batch.ref_logp).flatten())
        masks.append(batch.loss_mask.flatten())
    maxima = log_maxima(torch.cat(ratios), torch.cat(masks))
    sampling = replace(sampling, maxima=(maxima.P.exp(), maxima.R.exp()))
    settings = {"max_length": config.max_length, "seed": config.seed, "step": step}
    draws = [draws_of(examples, micro, scorer.objective, sampling, **settings) for micro in window]
    return [
        replace(batch, sampling=replace(sampling, draws=own.to(batch.input_ids.device, non_blocking=True)))
        for batch, own in zip(batches, draws, strict=True)
    ]


def draws_of(
    examples: Sequence[Example],
    micro: MicroBatch,
    objective: Learner,
    sampling: HumanlineSampling,
    *,
    max_length: int,
    seed: int,
    step: int,
) -> Tensor:
    """Return log B_P and log B_R of a micro-batch's tokens, [2, 1, n], float64, on the CPU.

    Those of a sequence are a function of seed, step, example and side alone.
    """
    drawn = []
    for row, parts in enumerate(sequences(examples, micro, objective)[0].parts):
        side, position = divmod(row, len(micro.ids))
        (state,) = np.random.SeedSequence([seed, step, micro.ids[position], side]).generate_state(1)
        own = replace(sampling, generator=torch.Generator().manual_seed(int(state)))
        every = log_draws([len(parts.token_ids(max_length))], own)
        drawn.append(every[:, parts.scoring(max_length)])
    return torch.cat(drawn, dim=1)[:, None]
