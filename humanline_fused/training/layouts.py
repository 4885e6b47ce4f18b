"""Chooses the layout of a run's batches: each shared prompt once, if the models compute that exactly."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from accelerate.utils import gather_object
from torch import nn

from humanline_fused.model.causality import refuse_later_tokens
from humanline_fused.model.layout_probe import extra_cost, refusal
from humanline_fused.training.data.batch import Layout
from humanline_fused.training.data.examples import Example
from humanline_fused.training.objectives.objective import Objective

PROBED_EXAMPLES = 8
"""Number of examples whose tokens a probe may use."""


class Choice(NamedTuple):
    """A layout, and why."""

    layout: Layout
    why: str


def _keeps(objective: Objective) -> str:
    return f"{objective.name} keeps its micro-batches, whose mean is its reference point"


def check_layout(asked: str, objective: Objective) -> None:
    """Raise ValueError if the setting ``layout`` is impossible for the objective, whatever the model."""
    if asked == "sorted" and objective.mismatched:
        raise ValueError(f"layout: expected 'auto', 'shared_prompt' or 'padded', got 'sorted': {_keeps(objective)}")


def choose_layout(
    asked: str,
    objective: Objective,
    models: Sequence[tuple[nn.Module, nn.Module]],
    examples: Sequence[Example],
    longest: int,
) -> Choice:
    """Return the layout of a run, the same on all ranks. Collective.

    The models are checked not to see later tokens; rows with shared prompts show that already.

    Args:
        asked: the setting ``layout``.
        objective: one with mismatched pairs is not sorted: its reference point is a mean over the micro-batch.
        models: each model that scores the batches, wrapped, and the transformers or PEFT model in it.
        examples: data of the run, the same on every rank.
        longest: length of the run's longest sequence, tokens.

    Raises:
        ValueError: the layout that was asked for is impossible, or a model sees later tokens.
    """
    check_layout(asked, objective)
    some = [ids for example in examples[:PROBED_EXAMPLES] for ids in (example.prompt_ids, *example.completions)]
    token_ids = torch.cat(some).long()
    choice = _choose(asked, objective, models, token_ids, longest)
    if choice.layout != "shared_prompt":
        for wrapped, model in models:
            refuse_later_tokens(wrapped, model, token_ids, longest)
    return choice


def _choose(
    asked: str, objective: Objective, models: Sequence[tuple[nn.Module, nn.Module]], some: torch.Tensor, longest: int
) -> Choice:
    if asked == "padded":
        return Choice("padded", "asked for by name")
    if asked == "sorted":
        return Choice("sorted", "asked for by name")
    for wrapped, model in models:
        token_ids = some.to(next(model.parameters()).device)
        cost = extra_cost(model) if asked == "auto" else None
        found = gather_object([cost or refusal(wrapped, model, token_ids, longest)])
        if reason := next(filter(None, found), None):  # one rank's reason is everyone's
            break
    else:
        return Choice("shared_prompt", "asked for by name" if asked == "shared_prompt" else "exact for this model")
    if asked == "shared_prompt":
        raise ValueError(f"layout: expected a model that is exact with 'shared_prompt', or 'auto': {reason}")
    if objective.mismatched:
        return Choice("padded", f"not shared_prompt: {reason}; not sorted: {_keeps(objective)}")
    return Choice("sorted", f"not shared_prompt: {reason}")
