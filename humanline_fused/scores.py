"""Where token log-probs come from."""

from dataclasses import KW_ONLY, dataclass

from torch import Tensor
from torch.distributed import ProcessGroup


@dataclass(frozen=True, eq=False)
class Logits:
    """A model's output before the softmax.

    The softmax is taken of ``z = cap(scale · logits) / temperature``, ``cap(x) = softcap · tanh(x / softcap)``
    (docs/math.md, equation 1). A model that caps or scales its own logits has done so already.

    Args:
        logits: [B, T, V], bfloat16, float16, float32 or float64, any strides (other than 1 over the vocabulary costs
            a copy). Row ``[b, t]`` scores ``target_ids[b, t]``: shift ids and mask
            (:func:`humanline_fused.shift_targets`), never the logits.
        temperature: > 0, for all tokens, or [B, T], float. No gradient reaches it.
        softcap: > 0; None does not cap.
        scale: > 0.
        inplace_gradient: backward may write dlogits over the logits, and so need no memory of its own. The logits must
            be the result of another operation, not a leaf. Autograd counts it as a write: whatever else needs these
            logits for a later backward raises, and so does a second backward (not under saved-tensor hooks, which
            switch that check of autograd's off). Without a gradient nothing is written.
    """

    logits: Tensor
    _: KW_ONLY
    temperature: Tensor | float = 1.0
    softcap: float | None = None
    scale: float = 1.0
    inplace_gradient: bool = False


@dataclass(frozen=True, eq=False)
class TokenLogp:
    """Log-probs of the targets that are already there: scored ahead, by another engine, or by code of the caller's.

    Args:
        logp: [B, T], nats. What stands where the mask is False is never read.
    """

    logp: Tensor


@dataclass(frozen=True, eq=False)
class LMHead:
    """A model's last product and its softmax, without [B, T, V] logits: they exist a chunk at a time.

    ``logits = hidden · weightᵀ + bias``, of which the softmax is taken as of :class:`Logits`. Only rows that count are
    multiplied. In products with the weight, of 2·n·H·V flops for n rows that count: 1 without a gradient, 2 where the
    head is frozen, 3 where it is trained by ``dpo_loss``, ``kto_loss`` or ``grpo_loss``, 4 where it is trained by a
    loss of the caller's (or by an entropy), and 1 for a reference. Gradients have no graph of their own.

    Args:
        hidden: [B, T, H], bfloat16, float16, float32 or float64: what the model hands its head. Row ``[b, t]`` scores
            ``target_ids[b, t]``.
        weight: [V, H], in the dtype of ``hidden`` (under autocast both are cast as a linear layer's would be). May be
            the embedding's. Whole: DTensors and ZeRO-3's partitioned parameters are refused.
        bias: [V].
        temperature, softcap, scale: as :class:`Logits`.
        group: ranks that hold a slice each of weight and bias, in rank order, and the same ``hidden``; ids are those of
            the whole vocabulary. Every rank gets the whole result, and the whole gradient of ``hidden``. The ranks
            agree on the size of a chunk, for which each call waits once.
        rows: [n], int64: positions ``b · T + t`` where the mask is True, ascending. With it, or with a ``loss_mask`` on
            the CPU, nobody waits for a GPU to count them (DPO and KTO with a trained head and more than one chunk need
            them on the CPU for that, and no ``cu_seqlens``).
        workspace_bytes: of the logits that are held at once; at least one row. Default: 128 MiB on a CPU; on a GPU
            2 GiB, or as much as 4096 rows take if that is more, at most 4 GiB, and half of the free memory (give a
            number for runs that repeat to the bit: another number of rows may move last bits). Under a trained head
            several chunks also hold float32 [V, H] and [n, H] until backward; one chunk holds its logits' memory.
        fp32_logits: keep the products' float32 instead of rounding it to the dtype of ``hidden``.
        main_grad: add the weight's gradient to ``weight.main_grad`` (float32, the one that is there in forward)
            instead of returning it. Megatron's own flags and hooks are not touched.
        drop_clamped: tokens beyond the clamp, whose gradient is 0, leave the backward products too. Costs a wait for
            the GPU and a copy per chunk; pays where more than 5 % of the tokens are clamped.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None = None
    _: KW_ONLY
    temperature: Tensor | float = 1.0
    softcap: float | None = None
    scale: float = 1.0
    group: ProcessGroup | None = None
    rows: Tensor | None = None
    workspace_bytes: int | None = None
    fp32_logits: bool = False
    main_grad: bool = False
    drop_clamped: bool = False


Scores = Logits | LMHead | TokenLogp
