"""A causal LM forward that passes the lm_head to a loss instead of computing logits.

During such a call the head's forward returns a ``LogitsRecorder`` (recorder.py) in place of the logits. The model's own
code applies its operations on logits (scale, softcap, casts) to the recorder, which accumulates them. So no table of
architectures is needed; an operation that the recorder does not support is an error. The scores are computed before
the model's forward returns, so wrappers of the model (DDP, FSDP2, PEFT, autocast) have its weights in place.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, wraps
from types import MethodType
from typing import Any, cast

import torch
from torch import Tensor, nn

from humanline_fused.model.recorder import INSTEAD, LogitsRecorder
from humanline_fused.scores import LMHead


def causal_lm(model: nn.Module) -> Any:
    """Return the transformers model inside a PEFT model, or the model itself."""
    unwrap = getattr(model, "get_base_model", None)
    return unwrap() if callable(unwrap) else model


def score_in_forward_(model: nn.Module) -> None:
    """Replace the forward of the causal language model in ``model`` by one that accepts ``score``.

    ``model(..., score=f)``, with the other arguments by keyword, calls ``f(LMHead)`` inside the forward and returns its
    result; without ``score`` nothing changes. A second call of this function does nothing. :func:`restore_forward_`
    undoes it.

    Args:
        model: a transformers model with an output embedding, or a PEFT model around one. A copy.deepcopy works too.

    Raises:
        ValueError: its head or its forward is not supported.

    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=11, **sizes))
    >>> score_in_forward_(model)
    >>> model(input_ids=torch.tensor([[1, 2, 3]]), score=lambda head: {"hidden": head.hidden.shape})
    {'hidden': torch.Size([1, 3, 8])}
    """
    model = causal_lm(model)
    _check_head(model)
    if _scoring(model.forward):
        return
    forward = getattr(model.forward, "__func__", None)
    if forward is None:
        raise ValueError(
            f"head='fused': expected a model whose forward is a method, got {type(model.forward).__name__} (a model "
            f"split by device_map?). {INSTEAD}"
        )

    @wraps(forward)
    def scoring_forward(self: Any, *args: Any, score: Callable[[LMHead], Any] | None = None, **kwargs: Any) -> Any:
        if score is None:
            return forward(self, *args, **kwargs)
        with _recording(_check_head(self)):
            logits = getattr(forward(self, *args, **kwargs), "logits", None)
        if not isinstance(logits, LogitsRecorder):
            raise ValueError(
                "head='fused': expected logits that get_output_embeddings() computed, got "
                f"{type(logits).__name__} from {type(self).__name__}.forward. {INSTEAD}"
            )
        return _call(score, logits.scores())  # pyright: ignore[reportCallIssue]

    cast(Any, scoring_forward).replaces = forward if "forward" in model.__dict__ else None
    model.forward = MethodType(scoring_forward, model)


@torch.compiler.disable
def _call(score: Callable[[LMHead], Any], head: LMHead) -> Any:
    """Run the loss outside the compiled graph: it has its own kernels and loops that must not be unrolled."""
    return score(head)


def restore_forward_(model: nn.Module) -> None:
    """Undo :func:`score_in_forward_` and later wrappers of that forward (accelerate's autocast)."""
    model = causal_lm(model)
    if scoring := _scoring(model.forward):
        del model.forward
        if scoring.replaces is not None:
            model.forward = MethodType(scoring.replaces, model)


def _scoring(forward: Any) -> Any:
    """Return the scoring forward inside its wrappers, or None."""
    while forward is not None and "replaces" not in getattr(forward, "__dict__", {}):
        forward = getattr(forward, "__func__", None) or getattr(forward, "__wrapped__", None)
    return forward


def _check_head(model: Any) -> nn.Linear:
    """Return the output embedding if it computes exactly ``hidden · weightᵀ + bias``, else raise ValueError."""
    head = model.get_output_embeddings()
    plain = isinstance(head, nn.Linear) and type(head).forward is nn.Linear.forward and "forward" not in vars(head)
    if not plain:
        adapted = " (an adapter on the head?)" if hasattr(head, "base_layer") or "peft" in type(head).__module__ else ""
        raise ValueError(
            f"head='fused': expected a head that is a plain nn.Linear, got {type(head).__module__}."
            f"{type(head).__name__}{adapted}. {INSTEAD}"
        )
    return head


@contextmanager
def _recording(head: nn.Linear) -> Iterator[None]:
    """Make the head's forward return recorders until exit."""
    vars(head)["forward"] = partial(_record, head)
    try:
        yield
    finally:
        vars(head).pop("forward")


@torch.compiler.disable
def _record(head: nn.Linear, hidden: Tensor) -> LogitsRecorder:
    """End a compiled model's graph here: dynamo would skip the whole frame at a recorder."""
    _check_weight(head.weight)
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    return LogitsRecorder(LMHead(hidden, head.weight, head.bias), dtype)


def _check_weight(weight: Tensor) -> None:
    """Raise ValueError if the weight is sharded, partitioned or quantised."""
    if hasattr(weight, "placements"):
        raise ValueError(
            "head='fused': expected the head's whole weight inside forward, got a DTensor: the head is sharded as a "
            "unit of its own. With FSDP2 leave it to the outermost unit, or use fully_shard([norm, lm_head], "
            f"reshard_after_forward=False). With tensor parallelism: {INSTEAD}"
        )
    if hasattr(weight, "ds_id"):
        raise ValueError(
            "head='fused': expected the head's whole weight inside forward, got one that DeepSpeed's ZeRO-3 partitions "
            f"over the ranks. {INSTEAD}, or ZeRO-2"
        )
    if type(weight) not in (nn.Parameter, Tensor):
        raise ValueError(
            f"head='fused': expected a plain weight tensor, got {type(weight).__name__} (quantised?). {INSTEAD}"
        )
