"""GRPO."""

from functools import partial

import torch
from torch import Tensor

from humanline_fused import validation
from humanline_fused.dispatch import accumulation_dtype, grpo_in_one_launch, layer_for, loss_of, per_token
from humanline_fused.functional.arguments import bounds_of, scalar
from humanline_fused.functional.perceived import perceive, sampling_of
from humanline_fused.scores import LMHead, Scores
from humanline_fused.tokens import Tokens, to_device
from humanline_fused.types import PAPER_CLAMP, GRPOOutput, HumanlineClamp, Impl, Perception


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
    perception: Perception = "clamp",
    impl: Impl = "auto",
) -> GRPOOutput:
    """GRPO: ``−min(A r_t, A clip(r_t, 1 − ε, 1 + ε_high)) + β k3_t`` with ``r_t = exp(l̃_t)``, mean over tokens.

    The synced reference is the old policy of PPO, so there is no third model. ``k3_t`` is taken on the unclamped
    log-ratio, so a token outside humanline's bounds, or rejected by its sampling, still receives its gradient
    (docs/math.md, equations 9 to 11).

    Args:
        policy, reference: ``Logits`` [B, T, V], ``LMHead`` [B, T, H] or ``TokenLogp`` [B, T], in any mix. No gradient
            reaches the reference.
        target_ids: [B, T], int64 or int32.
        loss_mask: [B, T], bool.
        advantages: [B] or [B, T], float; packed: [B] or [1, N]; on the device of the ids, or on the CPU.
        epsilon, epsilon_high: PPO's bounds on the ratio; ``epsilon_high=None`` is ``epsilon``.
        beta: weight of the KL penalty.
        num_items_in_batch: divisor of the sum over tokens, [] or a number, > 0; ``None`` is the number of tokens of
            this batch that count. (Where a check would wait for a GPU, a tensor that is not > 0 gives NaN.)
        one_launch: permits kernels to compute the gradient together with the loss, in 3 passes over [B, T, V] instead
            of 4, if the device's cache holds the rows in flight and the logits are not float16. The gradient is
            computed for ``grad_output`` = 1. Another one (a loss divided by accumulation steps) is multiplied in
            afterwards, with 2 more passes, slower than without ``one_launch``, and with a further rounding: pass a
            normaliser as ``num_items_in_batch`` instead. ``policy`` must be ``Logits``, and only one backward is
            possible.
        cu_seqlens: [B + 1], int32 or int64, for packed input: ids, scores and mask are one row [1, N], and sequence b
            is the tokens from ``cu_seqlens[b]`` to ``cu_seqlens[b + 1]`` (flash-attention's convention). On the device
            of the ids, or on the CPU, where it is read without a wait.
        clamp: humanline's bounds; ``None`` is plain GRPO.
        perception: ``"clamp"``; or humanline sampling instead of it, ``"sampling"`` or :class:`HumanlineSampling`.
        impl: the implementation; ``"auto"`` chooses.

    Raises:
        TypeError, ValueError, RuntimeError: as :func:`token_logp`.

    Source: arXiv 2509.24207, section 4; ContextualAI/HALOs at aa02f66, ``train/trainers.py``; names as TRL's.

    >>> import torch
    >>> from humanline_fused import TokenLogp
    >>> ids, mask = torch.tensor([[0]]), torch.tensor([[True]])
    >>> same = TokenLogp(torch.tensor([[-1.0]]))
    >>> grpo_loss(same, same, ids, mask, torch.tensor([2.0])).loss
    tensor(-2.)
    """
    sampling = sampling_of(perception, clamp)
    bounds = bounds_of(None if sampling else clamp)
    validation.check_tokens(policy, reference, target_ids, loss_mask)
    num_sequences = validation.check_sequences(target_ids, cu_seqlens)
    shape = target_ids.shape if isinstance(advantages, Tensor) and advantages.ndim == 2 else [num_sequences]
    on_cpu = isinstance(advantages, Tensor) and advantages.device.type == "cpu"
    waits = on_cpu and cu_seqlens is not None and cu_seqlens.device.type != "cpu"
    device = advantages.device if on_cpu else target_ids.device
    validation.check_tensor("advantages", advantages, shape, validation.FLOATS, device)
    epsilon = validation.check_number("epsilon", epsilon, 0, 1)
    epsilon_high = epsilon if epsilon_high is None else validation.check_number("epsilon_high", epsilon_high, 0)
    beta = validation.check_number("beta", beta, 0)
    if isinstance(num_items_in_batch, Tensor):
        numbers = (*validation.FLOATS, torch.int64, torch.int32)
        validation.check_tensor("num_items_in_batch", num_items_in_batch, [], numbers, target_ids.device)
        legal = (num_items_in_batch > 0) & num_items_in_batch.isfinite()
        validation.check_values("num_items_in_batch", "a finite number > 0", num_items_in_batch, legal)
    elif num_items_in_batch is not None:
        num_items_in_batch = validation.check_positive("num_items_in_batch", num_items_in_batch)
    if one_launch:
        if sampling:
            raise ValueError("one_launch: expected False with humanline sampling, which scores before the loss")
        validation.check_one_launch(policy)
    policy, reference, ungated, shares = perceive(policy, reference, target_ids, loss_mask, sampling, impl)
    layer = layer_for(impl, policy, reference)
    accumulation = accumulation_dtype(policy, reference)
    gradient = None
    if beta == 0 and isinstance(policy, LMHead) and not waits:
        gradient = advantages.detach() != 0
        all_have_one = validation.may_look_at(gradient) and bool(gradient.all())
        gradient = None if all_have_one else per_token(gradient, target_ids, cu_seqlens)
    tokens = Tokens(target_ids, loss_mask, cu_seqlens, gradient=gradient)
    advantages = to_device(advantages.detach().to(accumulation), target_ids.device)
    if advantages.ndim == 1:
        advantages = validation.nan_if_illegal(advantages, cu_seqlens, target_ids.shape[1])
    advantages = per_token(advantages, target_ids, cu_seqlens)
    num_items = None
    if num_items_in_batch is not None:
        num_items = scalar(num_items_in_batch, accumulation, target_ids.device)
        num_items = num_items.where((num_items > 0) & (num_items < torch.inf), torch.nan)
    settings = {"epsilon": epsilon, "epsilon_high": epsilon_high, "beta": beta if ungated is None else 0.0, **bounds}
    scored = None
    if one_launch:
        scored = grpo_in_one_launch(layer, policy, reference, tokens, advantages, num_items, **settings)
    if scored is None:
        loss_of_logp = partial(
            layer.grpo_loss,
            loss_mask=tokens.loss_mask,
            advantages=advantages,
            num_items_in_batch=num_items,
            **settings,
        )
        scored = loss_of(layer, policy, reference, tokens, loss_of_logp)
    result = scored.result
    if ungated is not None and beta:
        # The penalty of every token, rejected ones too: GRPO without advantages, its policy gradient clamped away.
        penalty = {"epsilon": epsilon, "epsilon_high": epsilon_high, "beta": beta, **bounds_of(HumanlineClamp(0, 0))}
        none = torch.zeros_like(advantages)
        k3 = layer.grpo_loss(ungated, scored.ref_logp, tokens.loss_mask, none, num_items, **penalty)
        result = result._replace(loss=result.loss + k3.loss)
    return GRPOOutput(logp=scored.logp, ref_logp=scored.ref_logp, **result._asdict() | shares)
