"""One line for each diagnostic: its value, the threshold it is judged by, and what the threshold rests on."""

import math
from typing import NamedTuple

import torch

from humanline_fused.looking.scored_data import ScoredData
from humanline_fused.perception.diagnostics import (
    FEWEST_WEIGHTS,
    SURPLUS_RISE,
    clamp_share,
    effective_sample_size,
    mean_entropy,
    mean_ratio,
    pareto_k,
    quartiles,
    surplus_surprisal,
    tail_mass,
)
from humanline_fused.types import HumanlineClamp

PAPER_BOTTOM_QUARTILE = (-1.03, -0.36)
"""Mean token log-prob of the sequences that trained worse than the other three quarters of the data, nats
(arXiv 2509.24207, the experiment on data quality). ``python -m benchmarks paper quartile`` repeats it."""

UNRELIABLE_K = 0.7
"""Pareto k above which a weighted mean is not to be trusted (Vehtari et al. 2024, JMLR 25:72)."""

NEEDS = "needs --source (the model that wrote the data) or --reference"


class Diagnostic(NamedTuple):
    """A diagnostic as it is printed.

    Attributes:
        name: its name.
        value: its value with its unit.
        verdict: what it says, by which threshold, from where.
    """

    name: str
    value: str
    verdict: str


def diagnostics(data: ScoredData, clamp: HumanlineClamp, other: str) -> list[Diagnostic]:
    """Return all diagnostics of scored data.

    Args:
        data: the scores.
        clamp: humanline's bounds.
        other: name of the other model, for the verdicts; empty without one.
    """
    return [*_of_the_model(data), *_of_both(data, clamp, other)]


def _of_the_model(data: ScoredData) -> list[Diagnostic]:
    means = torch.stack([logp.double().mean() for logp in data.logp])
    low, middle, high = quartiles(means).tolist()
    start, end = PAPER_BOTTOM_QUARTILE
    below = (means <= end).double().mean().item()
    return [
        Diagnostic(
            "token log-prob",
            f"{data.tokens.double().mean():.3f} nats",
            f"mean of all tokens; by sequence, quartiles {low:.2f}, {middle:.2f}, {high:.2f}",
        ),
        Diagnostic(
            "unlikely sequences",
            f"{below:.0%}",
            f"have a mean token log-prob of {end} or less, where the paper's bottom quartile [{start}, {end}] ends: "
            "there such data trained worse. It is the paper's model's threshold; the experiment `quartile` of "
            "docs/paper.md repeats it for tiny policies",
        ),
        Diagnostic("entropy", f"{mean_entropy(torch.cat(data.entropy)):.3f} nats", "of the model, mean of all tokens"),
        _surplus(data),
    ]


def _surplus(data: ScoredData) -> Diagnostic:
    value = surplus_surprisal(data.tokens, torch.cat(data.entropy)).item()
    means = torch.stack([values.double().mean() for values in data.surplus])
    error = means.std().item() / math.sqrt(len(means)) if len(means) > 1 else math.inf
    if abs(value) < SURPLUS_RISE:
        says = "as of the model's own samples"
    elif value > 0:
        says = "the model finds the data more surprising than its own samples: other text, or chosen for its rarity"
    else:
        says = "the data are likelier than the model's own samples: greedy, of a low temperature, or trained on"
    return Diagnostic(
        "surplus surprisal",
        f"{value:+.3f} ± {error:.3f} nats",
        f"{says}. Not a verdict on the training: the paper has no threshold, and ours ({SURPLUS_RISE} nats) is for the "
        "*rise* of humanline/surplus in a run (experiment `drift` of docs/paper.md)",
    )


def _of_both(data: ScoredData, clamp: HumanlineClamp, other: str) -> list[Diagnostic]:
    names = ("mean ratio", "effective sample", "Pareto k", "tail mass", "clamp share")
    if data.other_logp is None:
        return [Diagnostic(name, "-", NEEDS) for name in names]
    ratio, weights = torch.cat(data.log_ratio), data.log_weights
    bounds = f"[{clamp.log_epsilon_P:g}, {clamp.log_epsilon_R:g}]"
    cut = "they get no gradient" if other == "reference" else "with the source as the reference they get no gradient"
    inside, number = effective_sample_size(weights).item(), len(weights)
    found = (
        (
            f"{mean_ratio(ratio):.3f}",
            f"mean of π / π_{other} over the tokens: 1 on average if {other} sampled the data (paper, Assumption 4.1)",
        ),
        (
            f"{inside:.2%}",
            f"importance weights of whole sequences leave {inside * number:.0f} of {number}; neither the paper nor we "
            "have a threshold",
        ),
        _tail_shape(weights),
        (
            f"{tail_mass(ratio, clamp=clamp):.2%}",
            f"of the model's own tokens would be outside {bounds}, estimated from the data's. The paper assumes "
            "that it is negligible (Assumption 4.3) and gives no number",
        ),
        (
            f"{clamp_share(ratio, clamp=clamp):.2%}",
            f"of the data's tokens are outside {bounds}: {cut}",
        ),
    )
    return [Diagnostic(name, *given) for name, given in zip(names, found, strict=True)]


def _tail_shape(weights: torch.Tensor) -> tuple[str, str]:
    if len(weights) < FEWEST_WEIGHTS:
        return "-", f"needs at least {FEWEST_WEIGHTS} sequences, got {len(weights)}"
    k = pareto_k(weights)
    verdict = "not to be trusted" if k > UNRELIABLE_K else "usable"
    rests = f"the threshold is {UNRELIABLE_K} (Vehtari et al. 2024), the paper has none"
    return f"{k:.2f}", f"importance weighting of these sequences is {verdict}: {rests}"


def table(found: list[Diagnostic], width: int = 100) -> str:
    """Return diagnostics as aligned text, the verdicts wrapped.

    >>> print(table([Diagnostic("entropy", "1.2 nats", "of the model")]))
    entropy             1.2 nats              of the model
    """
    import textwrap

    lines = []
    for name, value, verdict in found:
        first, *rest = textwrap.wrap(verdict, width - 42) or [""]
        lines += [f"{name:<20}{value:<22}{first}", *(" " * 42 + line for line in rest)]
    return "\n".join(lines)
