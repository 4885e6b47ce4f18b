"""The public functions: validate, choose who computes, call. No mathematics."""

import math
from typing import Literal

import torch
import torch.distributed
from torch import Tensor

from humanline_fused import eager, validation
from humanline_fused.dispatch import (
    computes_in_float64,
    fits_one_launch,
    layer_for,
    one_launch_loss,
    per_token,
    score,
    score_both,
    softmax_of,
)
from humanline_fused.scores import LMHead, Logits, Scores
from humanline_fused.types import (
    PAPER_CLAMP,
    DPOOutput,
    GRPOOutput,
    HumanlineClamp,
    Impl,
    KTOOutput,
    TokenLogpOutput,
    TokenLogRatioOutput,
)


def _stub(scores):
    if isinstance(scores, LMHead):
        logits = torch.nn.functional.linear(scores.hidden, scores.weight, scores.bias)
        return Logits(logits, temperature=scores.temperature, softcap=scores.softcap, scale=scores.scale)
    return scores


def _bounds(clamp: HumanlineClamp | None) -> dict[str, float]:
    validation.check_clamp(clamp)
    clamp = clamp or HumanlineClamp(-math.inf, math.inf)
    return {"log_epsilon_P": float(clamp.log_epsilon_P), "log_epsilon_R": float(clamp.log_epsilon_R)}


def _scalar(value: Tensor | float, like: Tensor) -> Tensor:
    """A number as a tensor [] beside ``like``, without a copy from the host that a GPU would wait for."""
    if isinstance(value, Tensor):
        return value.detach().to(like.dtype)
    return torch.full((), value, dtype=like.dtype, device=like.device)


def token_logp(scores: Scores, target_ids: Tensor, loss_mask: Tensor, *, impl: Impl = "auto") -> Tensor:
    """Log-prob of each target: ``logits[target] − logsumexp(logits)`` (docs/math.md, equation 1).

    Args:
        scores: ``Logits`` [B, T, V] or ``TokenLogp`` [B, T].
        target_ids: [B, T], int64 or int32; read only where ``loss_mask`` is True.
        loss_mask: [B, T], bool: the tokens that count. Rows that do not are never read.
        impl: who computes.

    Returns:
        [B, T], float32 (float64 for float64 input), nats, 0 where the mask is False, with a graph. A row that holds
        NaN or +inf gives NaN.

    Raises:
        TypeError, ValueError: an argument does not fit; the message says what was expected and what came.
        RuntimeError: ``impl="triton"`` cannot run here.

    >>> token_logp(Logits(torch.zeros(1, 1, 4)), torch.tensor([[2]]), torch.tensor([[True]])).exp()
    tensor([[0.2500]])
    """
    scores = _stub(scores)
    validation.check_rows("scores", scores, target_ids, loss_mask)
    return score(layer_for(impl, scores), scores, target_ids, loss_mask)


def token_logp_and_entropy(
    scores: Logits | LMHead, target_ids: Tensor, loss_mask: Tensor, *, impl: Impl = "auto"
) -> TokenLogpOutput:
    """Log-prob of each target and entropy of each token's distribution, in one pass (docs/math.md, equations 1 and 12).

    Both have a graph, and share one backward pass. ``TokenLogp(out.logp)`` goes into any loss; an entropy bonus is a
    term beside it.

    Args:
        scores: ``Logits`` [B, T, V].
        target_ids, loss_mask, impl: as :func:`token_logp`.

    Raises:
        As :func:`token_logp`.

    >>> out = token_logp_and_entropy(Logits(torch.zeros(1, 1, 4)), torch.tensor([[2]]), torch.tensor([[True]]))
    >>> out.entropy.exp()
    tensor([[4.]])
    """
    scores = _stub(scores)
    validation.check_rows("scores", scores, target_ids, loss_mask)
    if not isinstance(scores, Logits):
        raise TypeError(f"scores: expected Logits(...), got {type(scores).__name__}: a log-prob alone has no entropy")
    settings = *softmax_of(scores), True, scores.inplace_gradient
    logp, entropy, _ = layer_for(impl, scores).token_logp(scores.logits, None, target_ids, loss_mask, *settings)
    return TokenLogpOutput(logp, entropy)


def token_log_ratio(
    policy: Scores,
    reference: Scores,
    target_ids: Tensor,
    loss_mask: Tensor,
    *,
    clamp: HumanlineClamp | None = PAPER_CLAMP,
    impl: Impl = "auto",
) -> TokenLogRatioOutput:
    """Each token's log-ratio ``log π_θ − log π_ref``, clamped: what any humanline loss is written on.

    ``l̃_t = clamp(log π_θ(y_t) − log π_ref(y_t), log_epsilon_P, log_epsilon_R)`` (docs/math.md, equations 2 and 3).
    Its gradient is 1 on the closed interval and 0 outside.

    Args:
        policy, reference: ``Logits`` [B, T, V] or ``TokenLogp`` [B, T], in any mix. No gradient reaches the reference.
        target_ids: [B, T], int64 or int32; read only where ``loss_mask`` is True.
        loss_mask: [B, T], bool: the tokens that count.
        clamp: humanline's bounds; ``None`` does not clamp.
        impl: who computes.

    Returns:
        ``log_ratio`` [B, T] in nats with a graph, 0 where the mask is False; the rest detached.

    Raises:
        As :func:`token_logp`.

    Source: arXiv 2509.24207, section 4; ContextualAI/HALOs at aa02f66, ``train/trainers.py``.

    >>> from humanline_fused import TokenLogp
    >>> ids, mask = torch.tensor([[0]]), torch.tensor([[True]])
    >>> out = token_log_ratio(TokenLogp(torch.tensor([[-1.0]])), TokenLogp(torch.tensor([[-4.0]])), ids, mask)
    >>> out.log_ratio
    tensor([[1.5000]])
    """
    policy, reference = _stub(policy), _stub(reference)
    bounds = _bounds(clamp)
    validation.check_tokens(policy, reference, target_ids, loss_mask)
    logp, ref_logp = score_both(layer_for(impl, policy, reference), policy, reference, target_ids, loss_mask)
    # N floats: there is nothing here for a kernel to win, so both impls share the plain form.
    ratio = eager.clamped_log_ratio(logp, ref_logp, loss_mask, **bounds)
    num_tokens = loss_mask.sum().clamp(min=1)
    return TokenLogRatioOutput(
        log_ratio=ratio.clamped,
        logp=logp.detach(),
        ref_logp=ref_logp,
        clamped_low_fraction=ratio.low / num_tokens,
        clamped_high_fraction=ratio.high / num_tokens,
    )


def dpo_loss(
    policy: Scores,
    reference: Scores,
    target_ids: Tensor,
    loss_mask: Tensor,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    cu_seqlens: Tensor | None = None,
    clamp: HumanlineClamp | None = PAPER_CLAMP,
    impl: Impl = "auto",
) -> DPOOutput:
    """DPO: ``−log σ(β (R(y_w) − R(y_l)))`` with ``R(y) = Σ_t l̃_t``, mean over pairs (docs/math.md, equation 4).

    Args:
        policy, reference: ``Logits`` [B, T, V] or ``TokenLogp`` [B, T], in any mix. No gradient reaches the reference.
        target_ids: [B, T], int64 or int32; the first half of the sequences chosen, the second half rejected.
        loss_mask: [B, T], bool. A pair without any token that counts leaves the mean; without any pair the loss is 0.
        beta: weight of the implicit reward.
        label_smoothing: share of pairs whose preference is taken to be the wrong way round, in [0, 0.5].
        cu_seqlens: [B + 1], int32 or int64, for packed input: one row [1, N] of ids, scores and mask, whose sequence b
            is the tokens from ``cu_seqlens[b]`` to ``cu_seqlens[b + 1]`` (flash-attention's convention).
        clamp: humanline's bounds; ``None`` is plain DPO.
        impl: who computes.

    Raises:
        As :func:`token_logp`; ValueError for an odd number of sequences.

    Source: arXiv 2509.24207, section 4; ContextualAI/HALOs at aa02f66, ``train/trainers.py``. Label smoothing as cDPO.

    >>> from humanline_fused import TokenLogp
    >>> logits = torch.zeros(2, 1, 4, requires_grad=True)
    >>> ids, mask = torch.tensor([[0], [1]]), torch.ones(2, 1, dtype=torch.bool)
    >>> round(dpo_loss(Logits(logits), TokenLogp(torch.zeros(2, 1)), ids, mask).loss.item(), 4)
    0.6931
    """
    policy, reference = _stub(policy), _stub(reference)
    bounds = _bounds(clamp)
    validation.check_tokens(policy, reference, target_ids, loss_mask)
    validation.check_pairs(validation.check_sequences(target_ids, cu_seqlens))
    beta = validation.check_number("beta", beta, 0)
    label_smoothing = validation.check_number("label_smoothing", label_smoothing, 0, 0.5)
    layer = layer_for(impl, policy, reference)
    logp, ref_logp = score_both(layer, policy, reference, target_ids, loss_mask)
    loss, rewards, low, high = layer.dpo_loss(
        logp, ref_logp, loss_mask, cu_seqlens, beta=beta, label_smoothing=label_smoothing, **bounds
    )
    return DPOOutput(logp.detach(), ref_logp, low, high, loss=loss, rewards=rewards)


def kto_kl(
    policy: Scores,
    reference: Scores,
    target_ids: Tensor,
    loss_mask: Tensor,
    *,
    cu_seqlens: Tensor | None = None,
    clamp: HumanlineClamp | None = PAPER_CLAMP,
    group: torch.distributed.ProcessGroup | Literal["local"] | None = None,
    impl: Impl = "auto",
) -> Tensor:
    """KTO's reference point ``z0 = max(0, mean Σ_t l̃_t)`` over mismatched pairs (x_i, y_{i+1}), detached, nats, [].

    Args:
        policy, reference, target_ids, loss_mask, cu_seqlens, clamp, impl: as :func:`kto_loss`, for the mismatched
            pairs. A sequence without any token that counts leaves the mean.
        group: process group over whose ranks the mean is taken; ``None`` is all of them, ``"local"`` this one alone.

    Source: arXiv 2509.24207, section 4; ContextualAI/HALOs at aa02f66, ``train/trainers.py`` (the KL's tokens are
    clamped too).

    >>> from humanline_fused import TokenLogp
    >>> ids, mask = torch.tensor([[0], [1]]), torch.ones(2, 1, dtype=torch.bool)
    >>> kto_kl(TokenLogp(torch.tensor([[-1.0], [-1.0]])), TokenLogp(torch.tensor([[-2.0], [-1.5]])), ids, mask)
    tensor(0.7500)
    """
    policy, reference = _stub(policy), _stub(reference)
    validation.check_tokens(policy, reference, target_ids, loss_mask)
    validation.check_sequences(target_ids, cu_seqlens)
    with torch.no_grad():
        ratio = token_log_ratio(policy, reference, target_ids, loss_mask, clamp=clamp, impl=impl).log_ratio
        total = torch.stack([ratio.sum(), eager.sequence_counts(loss_mask, cu_seqlens).sum().to(ratio.dtype)])
        if group != "local" and torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(total, group=group)
        return (total[0] / total[1].clamp(min=1)).clamp(min=0)


def kto_loss(
    policy: Scores,
    reference: Scores,
    target_ids: Tensor,
    loss_mask: Tensor,
    desirable: Tensor,
    *,
    kl: Tensor | float,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
    cu_seqlens: Tensor | None = None,
    clamp: HumanlineClamp | None = PAPER_CLAMP,
    impl: Impl = "auto",
) -> KTOOutput:
    """KTO: ``λ_D (1 − σ(β (R − z0)))`` or ``λ_U (1 − σ(β (z0 − R)))``, ``R = Σ_t l̃_t``, mean over sequences.

    docs/math.md, equations 6 to 8.

    Args:
        policy, reference: ``Logits`` [B, T, V] or ``TokenLogp`` [B, T], in any mix. No gradient reaches the reference.
        target_ids: [B, T], int64 or int32.
        loss_mask: [B, T], bool. A sequence without any token that counts leaves the mean.
        desirable: [B], bool.
        kl: z0 from :func:`kto_kl`, [] or a number, nats, ≥ 0; no gradient flows into it.
        beta: weight of the implicit reward.
        desirable_weight, undesirable_weight: λ_D and λ_U.
        cu_seqlens: [B + 1], int32 or int64, for packed input: one row [1, N] of ids, scores and mask, whose sequence b
            is the tokens from ``cu_seqlens[b]`` to ``cu_seqlens[b + 1]`` (flash-attention's convention).
        clamp: humanline's bounds; ``None`` is plain KTO.
        impl: who computes.

    Raises:
        As :func:`token_logp`.

    Source: arXiv 2509.24207, section 4; ContextualAI/HALOs at aa02f66, ``train/trainers.py``.

    >>> from humanline_fused import TokenLogp
    >>> ids, mask = torch.tensor([[0]]), torch.tensor([[True]])
    >>> same = TokenLogp(torch.tensor([[-1.0]]))
    >>> kto_loss(same, same, ids, mask, torch.tensor([True]), kl=0.0).loss
    tensor(0.5000)
    """
    policy, reference = _stub(policy), _stub(reference)
    bounds = _bounds(clamp)
    validation.check_tokens(policy, reference, target_ids, loss_mask)
    num_sequences = validation.check_sequences(target_ids, cu_seqlens)
    validation.check_tensor("desirable", desirable, [num_sequences], (torch.bool,), target_ids.device)
    beta = validation.check_number("beta", beta, 0)
    desirable_weight = validation.check_number("desirable_weight", desirable_weight, 0)
    undesirable_weight = validation.check_number("undesirable_weight", undesirable_weight, 0)
    if isinstance(kl, Tensor):
        validation.check_tensor("kl", kl, [], validation.FLOATS, target_ids.device)
    else:
        kl = validation.check_number("kl", kl, 0)
    layer = layer_for(impl, policy, reference)
    logp, ref_logp = score_both(layer, policy, reference, target_ids, loss_mask)
    z0 = _scalar(kl, logp)
    loss, rewards, low, high = layer.kto_loss(
        logp,
        ref_logp,
        loss_mask,
        cu_seqlens,
        desirable,
        z0,
        beta=beta,
        desirable_weight=desirable_weight,
        undesirable_weight=undesirable_weight,
        **bounds,
    )
    return KTOOutput(logp.detach(), ref_logp, low, high, loss=loss, rewards=rewards, kl=z0)


def grpo_loss(
    policy: Scores,
    reference: Scores,
    target_ids: Tensor,
    loss_mask: Tensor,
    advantages: Tensor,
    *,
    epsilon: float = 0.2,
    epsilon_high: float | None = None,
    beta: float = 0.0,
    num_items_in_batch: Tensor | float | None = None,
    one_launch: bool = False,
    cu_seqlens: Tensor | None = None,
    clamp: HumanlineClamp | None = PAPER_CLAMP,
    impl: Impl = "auto",
) -> GRPOOutput:
    """GRPO: ``−min(A r_t, A clip(r_t, 1 − ε, 1 + ε_high)) + β k3_t`` with ``r_t = exp(l̃_t)``, mean over tokens.

    The synced reference plays the old policy: there is no third model. ``k3_t`` is taken on the unclamped log-ratio,
    so a token outside humanline's bounds still receives its gradient (docs/math.md, equations 9 to 11).

    Args:
        policy, reference: ``Logits`` [B, T, V] or ``TokenLogp`` [B, T], in any mix. No gradient reaches the reference.
        target_ids: [B, T], int64 or int32.
        loss_mask: [B, T], bool.
        advantages: [B] or [B, T], float; packed: [B] or [1, N].
        epsilon, epsilon_high: PPO's bounds on the ratio; ``epsilon_high=None`` is ``epsilon``.
        beta: weight of the KL penalty.
        num_items_in_batch: what the sum over tokens is divided by, [] or a number; ``None`` is this batch's tokens.
        one_launch: permits kernels to compute the gradient along with the loss, 3 passes over [B, T, V] for 4, where
            the device's cache holds the rows in flight, and the logits are not float16. It fixes ``grad_output`` at 1:
            any other (a loss divided by accumulation steps) is multiplied in afterwards, at 2 more passes, slower than
            without, and a further rounding; hand a normaliser in as ``num_items_in_batch`` instead. ``policy`` must be
            ``Logits``, and backward may be called once.
        cu_seqlens: [B + 1], int32 or int64, for packed input: one row [1, N] of ids, scores and mask, whose sequence b
            is the tokens from ``cu_seqlens[b]`` to ``cu_seqlens[b + 1]`` (flash-attention's convention).
        clamp: humanline's bounds; ``None`` is plain GRPO.
        impl: who computes.

    Raises:
        As :func:`token_logp`.

    Source: arXiv 2509.24207, section 4; ContextualAI/HALOs at aa02f66, ``train/trainers.py``; names as TRL's.

    >>> from humanline_fused import TokenLogp
    >>> ids, mask = torch.tensor([[0]]), torch.tensor([[True]])
    >>> same = TokenLogp(torch.tensor([[-1.0]]))
    >>> grpo_loss(same, same, ids, mask, torch.tensor([2.0])).loss
    tensor(-2.)
    """
    policy, reference = _stub(policy), _stub(reference)
    bounds = _bounds(clamp)
    validation.check_tokens(policy, reference, target_ids, loss_mask)
    num_sequences = validation.check_sequences(target_ids, cu_seqlens)
    shape = target_ids.shape if isinstance(advantages, Tensor) and advantages.ndim == 2 else [num_sequences]
    validation.check_tensor("advantages", advantages, shape, validation.FLOATS, target_ids.device)
    epsilon = validation.check_number("epsilon", epsilon, 0, 1)
    epsilon_high = epsilon if epsilon_high is None else validation.check_number("epsilon_high", epsilon_high, 0)
    beta = validation.check_number("beta", beta, 0)
    if isinstance(num_items_in_batch, Tensor):
        numbers = (*validation.FLOATS, torch.int64, torch.int32)
        validation.check_tensor("num_items_in_batch", num_items_in_batch, [], numbers, target_ids.device)
    elif num_items_in_batch is not None:
        num_items_in_batch = validation.check_number("num_items_in_batch", num_items_in_batch, 1)
    if one_launch:
        validation.check_one_launch(policy)
    layer = layer_for(impl, policy, reference)
    accumulation = torch.float64 if computes_in_float64(policy, reference) else torch.float32
    advantages = per_token(advantages.detach().to(accumulation), target_ids, cu_seqlens)
    num_items = None
    if num_items_in_batch is not None:
        num_items = _scalar(num_items_in_batch, advantages).clamp(min=1)
    settings = {"epsilon": epsilon, "epsilon_high": epsilon_high, "beta": beta, **bounds}
    if one_launch and fits_one_launch(layer, policy, reference):
        loss, logp, ref_logp, *metrics = one_launch_loss(
            layer, policy, reference, target_ids, loss_mask, advantages, num_items, settings
        )
    else:
        logp, ref_logp = score_both(layer, policy, reference, target_ids, loss_mask)
        loss, *metrics = layer.grpo_loss(logp, ref_logp, loss_mask, advantages, num_items, **settings)
    kl, clip_low, clip_high, low, high = metrics
    return GRPOOutput(
        logp.detach(),
        ref_logp,
        low,
        high,
        loss=loss,
        kl=kl,
        clip_low_fraction=clip_low,
        clip_high_fraction=clip_high,
    )
