"""Sources of token log-probs: logits, hidden states with a head, or the log-probs themselves."""

from dataclasses import KW_ONLY, dataclass

from torch import Tensor
from torch.distributed import ProcessGroup


@dataclass(frozen=True, eq=False)
class Logits:
    """A model's output before the softmax.

    The softmax is over ``z = cap(scale · logits) / temperature``, ``cap(x) = softcap · tanh(x / softcap)``
    (docs/math.md, equation 1). For a model that caps or scales its own logits, keep the defaults.

    Args:
        logits: [B, T, V], bfloat16, float16, float32 or float64, any strides (a stride other than 1 over the
            vocabulary costs a copy). Row ``[b, t]`` scores ``target_ids[b, t]``: shift ids and mask
            (:func:`humanline_fused.shift_targets`), never the logits.
        temperature: > 0, for all tokens, or [B, T], float. No gradient reaches it. (Where a check would wait for a
            GPU, a token whose temperature is not > 0 has a log-prob of NaN.)
        softcap: > 0; None does not cap.
        scale: > 0.
        inplace_gradient: backward may write dlogits over the logits, so that it needs no memory of its own. The logits
            must be the result of another operation, not a leaf. Autograd counts it as a write: any later backward
            that needs these logits is an error, and so is a second backward (not under saved-tensor hooks, which turn
            that check off). Without a gradient nothing is written.
    """

    logits: Tensor
    _: KW_ONLY
    temperature: Tensor | float = 1.0
    softcap: float | None = None
    scale: float = 1.0
    inplace_gradient: bool = False


@dataclass(frozen=True, eq=False)
class TokenLogp:
    """Given log-probs of the targets: scored ahead of time, by another engine, or by the caller's own code.

    Args:
        logp: [B, T], nats. Values where the mask is False are never read.
    """

    logp: Tensor


@dataclass(frozen=True, eq=False)
class LMHead:
    """A model's last product and its softmax, without [B, T, V] logits: only one chunk of them exists at a time.

    ``logits = hidden · weightᵀ + bias``, with the softmax of :class:`Logits`. Only rows that count are multiplied. The
    cost in products with the weight, of 2·n·H·V flops for n rows that count: 1 without a gradient, 2 with a frozen
    head, 3 with a head trained by ``dpo_loss``, ``kto_loss`` or ``grpo_loss``, 4 with a head trained by a loss of the
    caller's own (or by an entropy), and 1 for a reference. Gradients have no graph of their own.

    Args:
        hidden: [B, T, H], bfloat16, float16, float32 or float64: the input of the model's head. Row ``[b, t]`` scores
            ``target_ids[b, t]``.
        weight: [V, H], in the dtype of ``hidden`` (under autocast both are cast as for a linear layer). May be the
            embedding's. It must be whole: DTensors and ZeRO-3's partitioned parameters are refused.
        bias: [V].
        temperature, softcap, scale: as :class:`Logits`.
        group: process group whose ranks hold one slice each of weight and bias, in rank order, and the same ``hidden``.
            Ids refer to the whole vocabulary. Every rank gets the whole result, and the whole gradient of ``hidden``.
            The ranks agree on the size of a chunk; each call waits once for that.
        rows: [n], int64: positions ``b · T + t`` where the mask is True, ascending; checked if they and the mask are on
            the CPU. With it, or with a mask on the CPU, the host does not wait for a GPU to count them. (DPO and KTO
            with a trained head and more than one chunk need ``rows`` on the CPU for that, and ``cu_seqlens`` too.)
        workspace_bytes: memory of the logits that exist at once; at least one row. Default: 128 MiB on a CPU; on a GPU
            2 GiB, or the size of 4096 rows if that is more, at most 4 GiB and half of the free memory. Give a number
            for runs that must repeat bit for bit: another number of rows may change last bits. With a trained head,
            several chunks also hold float32 [V, H] and [n, H] until backward; one chunk holds its logits' memory.
        fp32_logits: keep the products' float32 instead of rounding it to the dtype of ``hidden``.
        main_grad: add the weight's gradient to ``weight.main_grad`` (float32, the tensor that is there in forward)
            instead of returning it, in every backward of the loss, also one for ``hidden`` alone. Megatron's own flags
            and hooks are not touched.
        drop_clamped: leave tokens outside the clamp, whose gradient is 0, out of the backward products too. Costs a
            wait for the GPU and a copy per chunk; saves two of these tokens' three products.
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
