"""Humanline sampling before a loss: the tokens that are rejected lose their gradient, and nothing is clamped."""

from typing import NamedTuple

from torch import Tensor

from humanline_fused.dispatch import layer_for, score_both
from humanline_fused.perception.sampling import detached_where, rejected
from humanline_fused.scores import Scores, TokenLogp
from humanline_fused.tokens import Tokens
from humanline_fused.types import PAPER_CLAMP, HumanlineClamp, HumanlineSampling, Impl, Perception
from humanline_fused.validation.values import describe


class Perceived(NamedTuple):
    """Scores for a loss.

    Attributes:
        policy, reference: as given; with sampling ``TokenLogp``, without a gradient where a token is rejected.
        ungated: the policy's log-probs with their whole gradient; None without sampling.
        shares: of rejected tokens, by name of :class:`~humanline_fused.types.ClampedOutput`; empty without sampling.
    """

    policy: Scores
    reference: Scores
    ungated: Tensor | None
    shares: dict[str, Tensor]


def sampling_of(perception: Perception, clamp: HumanlineClamp | None) -> HumanlineSampling | None:
    """Return the settings of humanline sampling, or None for the clamp.

    Raises:
        ValueError: an unknown perception, or a clamp beside sampling.
    """
    if perception == "clamp":
        return None
    if perception != "sampling" and not isinstance(perception, HumanlineSampling):
        raise ValueError(
            f"perception: expected 'clamp', 'sampling' or HumanlineSampling(...), got {describe(perception)}"
        )
    if clamp not in (None, PAPER_CLAMP):
        raise ValueError(f"clamp: expected none beside perception='sampling', which replaces it, got {clamp!r}")
    return HumanlineSampling() if perception == "sampling" else perception


def perceive(
    policy: Scores,
    reference: Scores,
    target_ids: Tensor,
    loss_mask: Tensor,
    sampling: HumanlineSampling | None,
    impl: Impl,
) -> Perceived:
    """Score policy and reference and draw the rejected tokens; with ``sampling=None`` return the scores as given."""
    if sampling is None:
        return Perceived(policy, reference, None, {})
    tokens = Tokens(target_ids, loss_mask)
    scores = score_both(layer_for(impl, policy, reference), policy, reference, tokens)
    low, high = rejected(scores.logp - scores.ref_logp, tokens.loss_mask, sampling)
    num_tokens = tokens.loss_mask.sum().clamp(min=1)
    return Perceived(
        policy=TokenLogp(detached_where(low | high, scores.logp)),
        reference=TokenLogp(scores.ref_logp),
        ungated=scores.logp,
        shares={
            "clamped_low_fraction": low.sum() / num_tokens,
            "clamped_high_fraction": (high & ~low).sum() / num_tokens,
        },
    )
