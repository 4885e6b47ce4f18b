"""Check of a user-defined loss on the first batch, before the first step."""

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from humanline_fused.scores import TokenLogp
from humanline_fused.training.objectives.objective import LossInputs, LossResult, Objective
from humanline_fused.training.objectives.rows import in_rows

CHANGE = 1 / 64
"""Relative change of loss or gradient under padding that is refused: far above rounding, far below a half."""

RATIO = 0.1
"""Largest log-ratio of the check, nats. At 0 many losses do not depend on their tokens."""

WITHOUT_GRAPH = "expected a loss with a graph to the policy's log-probs, got one without"


def check_loss(objective: Objective, inputs: LossInputs, config: Any) -> None:
    """Compute a loss as at step 0, where policy and reference are equal, and then of packed and of padded tokens.

    Args:
        inputs: packed tokens, with the policy's log-probs as ``TokenLogp``.

    Raises:
        TypeError: the loss is not a scalar tensor with a graph, or the metrics are not tensors by name.
        ValueError: loss or gradient is not finite at step 0, or depends on tokens that the mask excludes.
    """
    with torch.random.fork_rng():
        _check(
            copy.deepcopy(objective), inputs, config
        )  # a loss with a state, or random numbers, begins the run afresh


def metric_names(objective: Objective, inputs: LossInputs, config: Any) -> set[str]:
    """Return the names of the metrics that an objective computes from a micro-batch.

    Args:
        inputs: the tokens, with the reference's log-probs; the policy is set equal to them.

    Raises:
        TypeError, ValueError: the loss cannot be computed.
    """
    device = inputs.loss_mask.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.enable_grad():
        policy = TokenLogp(inputs.reference.logp.detach().clone().requires_grad_())
        metrics = _checked(copy.deepcopy(objective), replace(inputs, policy=policy), config).metrics
    return {name for name, weighted in metrics.items() if weighted.weight}


def _check(objective: Objective, inputs: LossInputs, config: Any) -> None:
    assert isinstance(inputs.policy, TokenLogp)
    logp = inputs.policy.logp.detach()
    loss, gradient = _loss(objective, replace(inputs, reference=TokenLogp(logp)), logp, config)
    finite = bool(gradient.isfinite().all())
    if not (finite and loss.isfinite()):
        raise ValueError(
            f"{_method(objective)}: expected a finite loss and gradient where the policy is the reference, as at step "
            f"0, got {loss.item()} and {'a finite gradient' if finite else 'a gradient that is not'}"
        )
    positions = torch.arange(logp.numel(), device=logp.device, dtype=logp.dtype).view(logp.shape)
    # Advantages without a mean: where they add up to 0, so would what a loss makes of the tokens that do not count.
    columns = {n: c.abs() + 1 if c.is_floating_point() else c for n, c in inputs.columns.items()}
    moved = replace(inputs, reference=TokenLogp(logp + RATIO * (positions + 1).sin()), columns=columns)
    loss, gradient = _loss(objective, moved, logp, config)
    again, _ = _loss(objective, moved, logp, config)
    if again != loss:  # a loss with random numbers draws other ones for another shape
        return
    padded = _padded(moved, logp)
    assert isinstance(padded.policy, TokenLogp)
    padded_loss, padded_gradient = _loss(objective, padded, padded.policy.logp, config)
    if _differ(padded_loss, loss) or _differ(padded_gradient[padded.loss_mask][None], gradient):
        raise ValueError(
            f"{_method(objective)}: expected a loss of the tokens that loss_mask counts alone, got {loss.item():.6g}, "
            f"and {padded_loss.item():.6g} in rows of twice the length, or another gradient: divide by tokens.lengths, "
            "not by the length of a row; in compute pass on cu_seqlens (inputs.perceived), and sum with inputs.sums"
        )


def _differ(mine: Tensor, other: Tensor) -> bool:
    """Whether they differ by more than rounding. Padding that counts changes a mean over twice the length by a half."""
    rounding = torch.finfo(other.dtype).eps * other.numel() ** 0.5
    return bool((mine - other).abs().max() > CHANGE * other.abs().max() + (rounding if not other.ndim else 0))


def _method(objective: Objective) -> str:
    kind = type(objective)
    return f"{kind.__name__}.{'loss' if kind.compute is Objective.compute else 'compute'}"


def _loss(objective: Objective, inputs: LossInputs, logp: Tensor, config: Any) -> tuple[Tensor, Tensor]:
    """Return the detached loss, and its gradient in the log-probs."""
    with torch.enable_grad():
        logp = logp.detach().requires_grad_()
        out = _checked(objective, replace(inputs, policy=TokenLogp(logp)), config)
        (gradient,) = torch.autograd.grad(out.loss, logp, allow_unused=True)
    if gradient is None:
        raise TypeError(f"{_method(objective)}: {WITHOUT_GRAPH}")
    return out.loss.detach(), gradient


def _checked(objective: Objective, inputs: LossInputs, config: Any) -> LossResult:
    try:
        out = objective.compute(inputs, config)
    except (TypeError, ValueError, AttributeError, LookupError, RuntimeError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        said = f"{type(error).__name__}: {error}"
        raise kind(f"{_method(objective)} failed on the first batch: {said}") from error
    if not isinstance(out, LossResult):
        raise TypeError(f"{_method(objective)}: expected a LossResult, got {type(out).__name__}")
    if not isinstance(out.loss, Tensor) or out.loss.ndim:
        got = list(out.loss.shape) if isinstance(out.loss, Tensor) else type(out.loss).__name__
        raise TypeError(f"{_method(objective)}: expected a scalar loss, a tensor of shape [], got {got}")
    if not out.loss.requires_grad:
        raise TypeError(f"{_method(objective)}: {WITHOUT_GRAPH}")
    return out


def _padded(inputs: LossInputs, logp: Tensor) -> LossInputs:
    """Return packed tokens and their log-probs under the policy in rows of twice the necessary length."""
    assert inputs.cu_seqlens is not None
    width = 2 * max([1, *inputs.cu_seqlens.diff().tolist()])
    given = (logp, inputs.reference.logp, inputs.target_ids, inputs.loss_mask)
    policy, reference, ids, mask = in_rows(given, inputs.cu_seqlens, width)
    tokens = {"target_ids": ids, "loss_mask": mask, "cu_seqlens": None}
    return replace(inputs, policy=TokenLogp(policy), reference=TokenLogp(reference), **tokens)
