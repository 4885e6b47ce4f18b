"""Each token's clamped log-ratio, from which any humanline loss can be computed."""

from torch import Tensor

from humanline_fused import eager, validation
from humanline_fused.dispatch import layer_for, score_both
from humanline_fused.functional.arguments import bounds_of
from humanline_fused.functional.perceived import perceive, sampling_of
from humanline_fused.scores import Scores
from humanline_fused.tokens import Tokens
from humanline_fused.types import PAPER_CLAMP, HumanlineClamp, Impl, Perception, TokenLogRatioOutput


def token_log_ratio(
    policy: Scores,
    reference: Scores,
    target_ids: Tensor,
    loss_mask: Tensor,
    *,
    clamp: HumanlineClamp | None = PAPER_CLAMP,
    perception: Perception = "clamp",
    impl: Impl = "auto",
) -> TokenLogRatioOutput:
    """Each token's log-ratio ``log π_θ − log π_ref``, clamped. Any humanline loss can be computed from it.

    ``l̃_t = clamp(log π_θ(y_t) − log π_ref(y_t), log_epsilon_P, log_epsilon_R)`` (docs/math.md, equations 2 and 3).
    Its gradient is 1 on the closed interval and 0 outside.

    Args:
        policy, reference: ``Logits`` [B, T, V], ``LMHead`` [B, T, H] or ``TokenLogp`` [B, T], in any mix. No gradient
            reaches the reference.
        target_ids: [B, T], int64 or int32; read only where ``loss_mask`` is True.
        loss_mask: [B, T], bool: the tokens that count; on the device of the ids, or on the CPU.
        clamp: humanline's bounds; ``None`` does not clamp.
        perception: ``"clamp"``; or humanline sampling instead of it, ``"sampling"`` or :class:`HumanlineSampling`.
        impl: the implementation; ``"auto"`` chooses.

    Returns:
        ``log_ratio`` [B, T] in nats with a graph, 0 where the mask is False; the rest detached.

    Raises:
        TypeError, ValueError, RuntimeError: as :func:`token_logp`.

    Source: arXiv 2509.24207, section 4; ContextualAI/HALOs at aa02f66, ``train/trainers.py``.

    >>> import torch
    >>> from humanline_fused import TokenLogp
    >>> ids, mask = torch.tensor([[0]]), torch.tensor([[True]])
    >>> out = token_log_ratio(TokenLogp(torch.tensor([[-1.0]])), TokenLogp(torch.tensor([[-4.0]])), ids, mask)
    >>> out.log_ratio
    tensor([[1.5000]])
    """
    sampling = sampling_of(perception, clamp)
    bounds = bounds_of(None if sampling else clamp)
    validation.check_tokens(policy, reference, target_ids, loss_mask)
    policy, reference, _, shares = perceive(policy, reference, target_ids, loss_mask, sampling, impl)
    tokens = Tokens(target_ids, loss_mask)
    scores = score_both(layer_for(impl, policy, reference), policy, reference, tokens)
    loss_mask = tokens.loss_mask
    # N floats: a kernel would not be faster, so both implementations use this one.
    ratio = eager.clamped_log_ratio(scores.logp, scores.ref_logp, loss_mask, **bounds)
    num_tokens = loss_mask.sum().clamp(min=1)
    clamped = {"clamped_low_fraction": ratio.low / num_tokens, "clamped_high_fraction": ratio.high / num_tokens}
    return TokenLogRatioOutput(
        log_ratio=ratio.clamped, logp=scores.logp.detach(), ref_logp=scores.ref_logp, **clamped | shares
    )
