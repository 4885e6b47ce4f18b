"""DPO."""

from functools import partial

from torch import Tensor

from humanline_fused import validation
from humanline_fused.dispatch import layer_for, loss_of
from humanline_fused.functional.arguments import bounds_of
from humanline_fused.scores import Scores
from humanline_fused.tokens import Tokens
from humanline_fused.types import PAPER_CLAMP, DPOOutput, HumanlineClamp, Impl


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
        policy, reference: ``Logits`` [B, T, V], ``LMHead`` [B, T, H] or ``TokenLogp`` [B, T], in any mix. No gradient
            reaches the reference.
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

    >>> import torch
    >>> from humanline_fused import Logits, TokenLogp
    >>> logits = torch.zeros(2, 1, 4, requires_grad=True)
    >>> ids, mask = torch.tensor([[0], [1]]), torch.ones(2, 1, dtype=torch.bool)
    >>> round(dpo_loss(Logits(logits), TokenLogp(torch.zeros(2, 1)), ids, mask).loss.item(), 4)
    0.6931
    """
    bounds = bounds_of(clamp)
    validation.check_tokens(policy, reference, target_ids, loss_mask)
    validation.check_pairs(validation.check_sequences(target_ids, cu_seqlens))
    beta = validation.check_number("beta", beta, 0)
    label_smoothing = validation.check_number("label_smoothing", label_smoothing, 0, 0.5)
    layer = layer_for(impl, policy, reference)
    tokens = Tokens(target_ids, loss_mask, cu_seqlens, depends="pair")
    loss_of_logp = partial(
        layer.dpo_loss,
        loss_mask=tokens.loss_mask,
        cu_seqlens=cu_seqlens,
        beta=beta,
        label_smoothing=label_smoothing,
        **bounds,
    )
    result, logp, ref_logp = loss_of(layer, policy, reference, tokens, loss_of_logp)
    return DPOOutput(logp=logp, ref_logp=ref_logp, **result._asdict())
