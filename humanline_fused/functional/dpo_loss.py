"""DPO, and the losses of pairs that share its margin."""

from functools import partial
from typing import get_args

from torch import Tensor

from humanline_fused import validation
from humanline_fused.dispatch import layer_for, loss_of
from humanline_fused.functional.arguments import bounds_of
from humanline_fused.functional.perceived import perceive, sampling_of
from humanline_fused.scores import Scores
from humanline_fused.tokens import Tokens
from humanline_fused.types import PAPER_CLAMP, DPOLossType, DPOOutput, HumanlineClamp, Impl, Perception


def dpo_loss(
    policy: Scores,
    reference: Scores,
    target_ids: Tensor,
    loss_mask: Tensor,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    loss_type: DPOLossType = "sigmoid",
    cu_seqlens: Tensor | None = None,
    clamp: HumanlineClamp | None = PAPER_CLAMP,
    perception: Perception = "clamp",
    impl: Impl = "auto",
) -> DPOOutput:
    """DPO: ``−log σ(β (R(y_w) − R(y_l)))`` with ``R(y) = Σ_t l̃_t``, mean over pairs (docs/math.md, equation 4).

    ``loss_type`` chooses the loss of a pair by TRL's name, with the margin ``Δ = β (R(y_w) − R(y_l))``, and
    ``Δ̄ = β (R(y_w)/n_w − R(y_l)/n_l)`` per token that counts (equations 5a to 5c):

    - ``"sigmoid"``: ``−log σ(Δ)``, DPO;
    - ``"sigmoid_norm"``: ``−log σ(Δ̄)``, length-normalised DPO;
    - ``"ipo"``: ``((Δ̄ − ½) / β)²``, IPO as TRL computes it: the squared distance of ``Δ̄/β`` from ``1/(2β)``;
    - ``"hinge"``: ``max(0, 1 − Δ)``, with a slope of 0 at ``Δ = 1``.

    The clamp acts on each token, before the sum and before the division by the number of tokens.

    Args:
        policy, reference: ``Logits`` [B, T, V], ``LMHead`` [B, T, H] or ``TokenLogp`` [B, T], in any mix. No gradient
            reaches the reference.
        target_ids: [B, T], int64 or int32; the first half of the sequences chosen, the second half rejected.
        loss_mask: [B, T], bool. A pair without any token that counts is left out of the mean; without any pair
            the loss is 0.
        beta: weight of the implicit reward, ≥ 0; for ``"ipo"`` the regularisation τ of its paper, > 0.
        label_smoothing: assumed share of pairs with the preference the wrong way round, in [0, 0.5]; with ``"sigmoid"``
            alone.
        loss_type: one of the four names above.
        cu_seqlens: [B + 1], int32 or int64, for packed input: ids, scores and mask are one row [1, N], and sequence b
            is the tokens from ``cu_seqlens[b]`` to ``cu_seqlens[b + 1]`` (flash-attention's convention). On the device
            of the ids, or on the CPU, where it is read without a wait.
        clamp: humanline's bounds; ``None`` is plain DPO.
        perception: ``"clamp"``; or humanline sampling instead of it, ``"sampling"`` or :class:`HumanlineSampling`.
        impl: the implementation; ``"auto"`` chooses.

    Returns:
        ``loss`` with a graph; ``rewards`` β R(y) of each sequence, a sum over tokens for every ``loss_type``, as TRL
        logs it.

    Raises:
        TypeError, ValueError, RuntimeError: as :func:`token_logp`; ValueError also for an odd number of sequences, an
            unknown ``loss_type``, or a ``label_smoothing`` that the ``loss_type`` does not have.

    Source: arXiv 2509.24207, section 4; ContextualAI/HALOs at aa02f66, ``train/trainers.py``. Label smoothing as cDPO.
    Loss types: trl 1.16.0, ``trl/trainer/dpo_trainer.py``, ``_compute_loss``; IPO arXiv 2310.12036, hinge arXiv
    2309.06657.

    >>> import torch
    >>> from humanline_fused import Logits, TokenLogp
    >>> logits = torch.zeros(2, 1, 4, requires_grad=True)
    >>> ids, mask = torch.tensor([[0], [1]]), torch.ones(2, 1, dtype=torch.bool)
    >>> round(dpo_loss(Logits(logits), TokenLogp(torch.zeros(2, 1)), ids, mask).loss.item(), 4)
    0.6931
    >>> dpo_loss(Logits(logits), TokenLogp(torch.zeros(2, 1)), ids, mask, loss_type="hinge").loss.item()
    1.0
    """
    sampling = sampling_of(perception, clamp)
    bounds = bounds_of(None if sampling else clamp)
    validation.check_tokens(policy, reference, target_ids, loss_mask)
    validation.check_pairs(validation.check_sequences(target_ids, cu_seqlens))
    beta = validation.check_number("beta", beta, 0)
    label_smoothing = validation.check_number("label_smoothing", label_smoothing, 0, 0.5)
    validation.check_choice("loss_type", loss_type, get_args(DPOLossType))
    if loss_type == "ipo":
        validation.check_positive("beta with loss_type='ipo'", beta)
    if loss_type != "sigmoid" and label_smoothing:
        raise ValueError(f"label_smoothing: expected 0 with loss_type={loss_type!r}, got {label_smoothing}")
    policy, reference, _, shares = perceive(policy, reference, target_ids, loss_mask, sampling, impl)
    layer = layer_for(impl, policy, reference)
    tokens = Tokens(target_ids, loss_mask, cu_seqlens, depends="pair")
    loss_of_logp = partial(
        layer.dpo_loss,
        loss_mask=tokens.loss_mask,
        cu_seqlens=tokens.boundaries,
        beta=beta,
        label_smoothing=label_smoothing,
        loss_type=loss_type,
        **bounds,
    )
    result, logp, ref_logp = loss_of(layer, policy, reference, tokens, loss_of_logp)
    return DPOOutput(logp=logp, ref_logp=ref_logp, **result._asdict() | shares)
