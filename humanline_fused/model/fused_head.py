"""A causal language model whose forward hands its head to a loss, instead of multiplying it out.

During such a call the head's forward returns a ``LogitsRecorder`` (recorder.py), which stands for the logits: the
model's own code then does to it what it does to its logits (a scale, a softcap, casts), and it says what that amounts
to. There is no table of architectures; what a recorder does not know is an error. The scores are computed before the
model's forward returns, so whatever wraps the model (DDP, FSDP2, PEFT, autocast) has its weights in place.
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
    """The transformers model inside PEFT's, or the model itself."""
    unwrap = getattr(model, "get_base_model", None)
    return unwrap() if callable(unwrap) else model


def score_in_forward_(model: nn.Module) -> None:
    """Give the causal language model in ``model`` a forward that takes ``score``.

    ``model(..., score=f)``, with the other arguments by keyword, calls ``f(LMHead)`` inside and returns what that
    returns; without ``score`` nothing changes. Once it has such a forward, this does nothing.
    :func:`restore_forward_` takes it away.

    Args:
        model: a transformers model with an output embedding, or PEFT's around one. A copy.deepcopy of it scores too.

    Raises:
        ValueError: its head, or its forward, is not one that this works with.

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
            f"spread by device_map?). {INSTEAD}"
        )

    @wraps(forward)
    def scoring_forward(self: Any, *args: Any, score: Callable[[LMHead], Any] | None = None, **kwargs: Any) -> Any:
        if score is None:
            return forward(self, *args, **kwargs)
        with _recording(_check_head(self)):
            logits = getattr(forward(self, *args, **kwargs), "logits", None)
        if not isinstance(logits, LogitsRecorder):
            raise ValueError(
                "head='fused': expected logits that get_output_embeddings() made, got "
                f"{type(logits).__name__} from {type(self).__name__}.forward. {INSTEAD}"
            )
        return _call(score, logits.scores())  # pyright: ignore[reportCallIssue]

    cast(Any, scoring_forward).replaces = forward if "forward" in model.__dict__ else None
    model.forward = MethodType(scoring_forward, model)


@torch.compiler.disable
def _call(score: Callable[[LMHead], Any], head: LMHead) -> Any:
    """A compiled model's loss stays as it is: it has its own kernels, and loops that are not to be unrolled."""
    return score(head)


def restore_forward_(model: nn.Module) -> None:
    """Undo :func:`score_in_forward_`, and what wrapped that forward since (accelerate's autocast)."""
    model = causal_lm(model)
    if scoring := _scoring(model.forward):
        del model.forward
        if scoring.replaces is not None:
            model.forward = MethodType(scoring.replaces, model)


def _scoring(forward: Any) -> Any:
    """The scoring forward behind what wraps it; None where there is none."""
    while forward is not None and "replaces" not in getattr(forward, "__dict__", {}):
        forward = getattr(forward, "__func__", None) or getattr(forward, "__wrapped__", None)
    return forward


def _check_head(model: Any) -> nn.Linear:
    """The output embedding, if it is ``hidden · weightᵀ + bias`` and nothing else."""
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
    """The head's forward gives recorders meanwhile."""
    vars(head)["forward"] = partial(_record, head)
    try:
        yield
    finally:
        vars(head).pop("forward")


@torch.compiler.disable
def _record(head: nn.Linear, hidden: Tensor) -> LogitsRecorder:
    """A compiled model's graph ends here: at a recorder, dynamo would give up the whole frame."""
    _check_weight(head.weight)
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    return LogitsRecorder(LMHead(hidden, head.weight, head.bias), dtype)


def _check_weight(weight: Tensor) -> None:
    """Whole, on this rank, in numbers: not a shard, nor quantised."""
    if hasattr(weight, "placements"):
        raise ValueError(
            "head='fused': expected the head's whole weight inside forward, got a DTensor: the head is a shard of its "
            "own. With FSDP2 leave it to the outermost unit, or use fully_shard([norm, lm_head], "
            f"reshard_after_forward=False). With tensor parallelism: {INSTEAD}"
        )
    if hasattr(weight, "ds_id"):
        raise ValueError(
            "head='fused': expected the head's whole weight inside forward, got one that DeepSpeed's ZeRO-3 spreads "
            f"over the ranks. {INSTEAD}, or ZeRO-2"
        )
    if type(weight) not in (nn.Parameter, Tensor):
        raise ValueError(
            f"head='fused': expected a weight of plain numbers, got {type(weight).__name__} (quantised?). {INSTEAD}"
        )
