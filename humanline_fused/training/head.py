"""A causal language model whose forward hands its head to a loss, instead of multiplying it out.

During such a call the head's forward returns a :class:`LogitsRecorder`, which stands for the logits: the model's own
code then does to it what it does to its logits (a scale, a softcap, casts), and it says what that amounts to. There is
no table of architectures; what a recorder does not know is an error. The scores are computed before the model's forward
returns, so whatever wraps the model (DDP, FSDP2, PEFT, autocast) has its weights in place.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial, wraps
from types import MethodType
from typing import Any, NoReturn, cast

import torch
from torch import Tensor, nn

from humanline_fused.scores import LMHead

INSTEAD = "Use the logits path: head='logits' (--head logits)"


def _refuse(done: str) -> NoReturn:
    raise ValueError(
        f"head='fused': expected a model that scales, caps or casts its logits, got one that does {done} with them. "
        f"{INSTEAD}"
    )


@dataclass(frozen=True, eq=False)
class LogitsRecorder:
    """Stands for ``outer · tanh(inner · logits)``, or ``inner · logits`` where ``outer`` is None.

    Args:
        head: hidden states [B, T, H], weight and bias as the model's head took them.
        dtype: what the logits would have here.
        inner, outer: exact, so that dividing and multiplying by one number leaves nothing.
    """

    head: LMHead
    dtype: torch.dtype
    inner: Fraction = Fraction(1)
    outer: Fraction | None = None

    @property
    def shape(self) -> torch.Size:
        return torch.Size([*self.head.hidden.shape[:-1], self.head.weight.shape[0]])

    @property
    def device(self) -> torch.device:
        return self.head.hidden.device

    def scores(self) -> LMHead:
        """The head with what the model does to its logits. Softcap and scale are computed in float32."""
        if self.outer is None:
            return replace(self.head, scale=float(self.inner))
        return replace(self.head, scale=float(self.inner * self.outer), softcap=float(self.outer))

    def size(self, dim: int | None = None) -> torch.Size | int:
        return self.shape if dim is None else self.shape[dim]

    def _scaled(self, by: Fraction) -> "LogitsRecorder":
        if self.outer is None:
            return replace(self, inner=self.inner * by)
        return replace(self, outer=self.outer * by)

    def __mul__(self, number: Any) -> "LogitsRecorder":
        return self._scaled(_fraction(number, "a product"))

    __rmul__ = __mul__

    def __truediv__(self, number: Any) -> "LogitsRecorder":
        return self._scaled(1 / _fraction(number, "a quotient"))

    def tanh(self) -> "LogitsRecorder":
        if self.outer is not None:
            _refuse("two tanh")
        return replace(self, outer=Fraction(1))

    def contiguous(self) -> "LogitsRecorder":
        return self

    def float(self) -> "LogitsRecorder":
        return self.to(torch.float32)

    def to(self, *args: Any, **kwargs: Any) -> "LogitsRecorder":
        """A cast that loses nothing (the softmax is computed in float32 whatever comes), or a stay on the device."""
        moved = torch.empty(0, dtype=self.dtype, device=self.device).to(*args, **kwargs)
        if moved.device != self.device:
            _refuse(f"a move to {moved.device}")
        if torch.promote_types(self.dtype, moved.dtype) != moved.dtype:
            _refuse(f"a cast from {self.dtype} to {moved.dtype}")
        return replace(self, dtype=moved.dtype)

    def __getitem__(self, index: Any) -> "LogitsRecorder":
        parts = index if isinstance(index, tuple) else (index,)
        if all(part is Ellipsis or isinstance(part, slice) for part in parts):
            kept = torch.empty(self.shape, device="meta")[index].shape
            if kept == self.shape:
                return self
        _refuse(f"a selection [{index}]")

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        _refuse(f".{name}")

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> "LogitsRecorder":
        if func in (torch.tanh, nn.functional.tanh) and not kwargs:
            return args[0].tanh()
        if func in (torch.Tensor.mul, torch.mul) and len(args) == 2 and not kwargs:
            recorder, other = args if isinstance(args[0], cls) else args[::-1]
            return recorder * other
        _refuse(getattr(func, "__name__", repr(func)))


def _refusing(name: str) -> Callable[..., NoReturn]:
    return lambda *_: _refuse(name)


for _name in ("add", "radd", "sub", "rsub", "rtruediv", "pow", "neg", "matmul", "setitem", "lt", "gt", "le", "ge"):
    setattr(LogitsRecorder, f"__{_name}__", _refusing(_name))


def _fraction(number: Any, what: str) -> Fraction:
    if isinstance(number, bool) or not isinstance(number, int | float) or not 0 < number < float("inf"):
        _refuse(f"{what} of {number if isinstance(number, int | float) else type(number).__name__}")
    return Fraction(number)


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
        return _called(score, logits.scores())

    cast(Any, scoring_forward).replaces = forward if "forward" in model.__dict__ else None
    model.forward = MethodType(scoring_forward, model)


@torch.compiler.disable
def _called(score: Callable[[LMHead], Any], head: LMHead) -> Any:
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
    if not isinstance(head, nn.Linear) or type(head).forward is not nn.Linear.forward:
        adapted = " (an adapter on the head?)" if hasattr(head, "base_layer") or "peft" in type(head).__module__ else ""
        raise ValueError(
            f"head='fused': expected a head that is a plain nn.Linear, got {type(head).__module__}."
            f"{type(head).__name__}{adapted}. {INSTEAD}"
        )
    return head


@contextmanager
def _recording(head: nn.Linear) -> Iterator[None]:
    """The head's forward gives recorders meanwhile."""
    own = vars(head).copy()
    vars(head)["forward"] = partial(_record, head)
    try:
        yield
    finally:
        vars(head).pop("forward")
        vars(head).update({name: value for name, value in own.items() if name == "forward"})


def _record(head: nn.Linear, hidden: Tensor) -> LogitsRecorder:
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
