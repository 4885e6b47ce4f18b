"""KTO, and its reference point."""

from functools import partial
from typing import Literal

import torch
import torch.distributed
from torch import Tensor

from humanline_fused import eager, validation
from humanline_fused.dispatch import accumulation_dtype, layer_for, loss_of
from humanline_fused.functional.arguments import bounds_of, scalar
from humanline_fused.functional.log_ratio import token_log_ratio
from humanline_fused.functional.perceived import perceive, sampling_of
from humanline_fused.scores import Scores
from humanline_fused.tokens import Tokens
from humanline_fused.types import PAPER_CLAMP, HumanlineClamp, Impl, KTOOutput, Perception


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
            pairs. A sequence without any token that counts is left out of the mean.
        group: process group for the mean; ``None`` is all ranks, ``"local"`` this rank alone.

    Source: arXiv 2509.24207, section 4; ContextualAI/HALOs at aa02f66, ``train/trainers.py`` (the KL's tokens are
    clamped too).

    >>> import torch
    >>> from humanline_fused import TokenLogp
    >>> ids, mask = torch.tensor([[0], [1]]), torch.ones(2, 1, dtype=torch.bool)
    >>> kto_kl(TokenLogp(torch.tensor([[-1.0], [-1.0]])), TokenLogp(torch.tensor([[-2.0], [-1.5]])), ids, mask)
    tensor(0.7500)
    """
    validation.check_tokens(policy, reference, target_ids, loss_mask)
    validation.check_sequences(target_ids, cu_seqlens)
    with torch.no_grad():
        ratio = token_log_ratio(policy, reference, target_ids, loss_mask, clamp=clamp, impl=impl).log_ratio
        nats = validation.nan_if_illegal(ratio.sum(), cu_seqlens, target_ids.shape[1])
        total = torch.stack([nats, eager.sequence_counts(loss_mask.to(ratio.device), cu_seqlens).sum().to(ratio.dtype)])
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
    perception: Perception = "clamp",
    impl: Impl = "auto",
) -> KTOOutput:
    """KTO: ``λ_D (1 − σ(β (R − z0)))`` or ``λ_U (1 − σ(β (z0 − R)))``, ``R = Σ_t l̃_t``, mean over sequences.

    docs/math.md, equations 6 to 8.

    Args:
        policy, reference: ``Logits`` [B, T, V], ``LMHead`` [B, T, H] or ``TokenLogp`` [B, T], in any mix. No gradient
            reaches the reference.
        target_ids: [B, T], int64 or int32.
        loss_mask: [B, T], bool. A sequence without any token that counts is left out of the mean.
        desirable: [B], bool.
        kl: z0 from :func:`kto_kl` (of ``clamp=None`` beside humanline sampling, which would only stop its gradient), []
            or a number, nats, ≥ 0; no gradient flows into it. (Where a check would wait for a GPU, a tensor below 0 or
            infinite gives NaN.)
        beta: weight of the implicit reward.
        desirable_weight, undesirable_weight: λ_D and λ_U.
        cu_seqlens: [B + 1], int32 or int64, for packed input: ids, scores and mask are one row [1, N], and sequence b
            is the tokens from ``cu_seqlens[b]`` to ``cu_seqlens[b + 1]`` (flash-attention's convention). On the device
            of the ids, or on the CPU, where it is read without a wait.
        clamp: humanline's bounds; ``None`` is plain KTO.
        perception: ``"clamp"``; or humanline sampling instead of it, ``"sampling"`` or :class:`HumanlineSampling`.
        impl: the implementation; ``"auto"`` chooses.

    Raises:
        TypeError, ValueError, RuntimeError: as :func:`token_logp`.

    Source: arXiv 2509.24207, section 4; ContextualAI/HALOs at aa02f66, ``train/trainers.py``.

    >>> import torch
    >>> from humanline_fused import TokenLogp
    >>> ids, mask = torch.tensor([[0]]), torch.tensor([[True]])
    >>> same = TokenLogp(torch.tensor([[-1.0]]))
    >>> kto_loss(same, same, ids, mask, torch.tensor([True]), kl=0.0).loss
    tensor(0.5000)
    """
    sampling = sampling_of(perception, clamp)
    bounds = bounds_of(None if sampling else clamp)
    validation.check_tokens(policy, reference, target_ids, loss_mask)
    num_sequences = validation.check_sequences(target_ids, cu_seqlens)
    validation.check_tensor("desirable", desirable, [num_sequences], (torch.bool,), target_ids.device)
    beta = validation.check_number("beta", beta, 0)
    desirable_weight = validation.check_number("desirable_weight", desirable_weight, 0)
    undesirable_weight = validation.check_number("undesirable_weight", undesirable_weight, 0)
    if isinstance(kl, Tensor):
        validation.check_tensor("kl", kl, [], validation.FLOATS, target_ids.device)
        # False for NaN, which log-probs can make of it, and which the loss shows.
        illegal = (kl.detach() < 0) | (kl.detach() == torch.inf)
        validation.check_values("kl", "a finite number >= 0", kl, ~illegal)
        kl = kl.detach().where(~illegal, torch.nan)
    else:
        kl = validation.check_number("kl", kl, 0)
    policy, reference, _, shares = perceive(policy, reference, target_ids, loss_mask, sampling, impl)
    layer = layer_for(impl, policy, reference)
    tokens = Tokens(target_ids, loss_mask, cu_seqlens, depends="sequence")
    z0 = scalar(kl, accumulation_dtype(policy, reference), target_ids.device)
    loss_of_logp = partial(
        layer.kto_loss,
        loss_mask=tokens.loss_mask,
        cu_seqlens=tokens.boundaries,
        desirable=desirable,
        kl=z0,
        beta=beta,
        desirable_weight=desirable_weight,
        undesirable_weight=undesirable_weight,
        **bounds,
    )
    result, logp, ref_logp = loss_of(layer, policy, reference, tokens, loss_of_logp)
    return KTOOutput(logp=logp, ref_logp=ref_logp, kl=z0, **result._asdict() | shares)
