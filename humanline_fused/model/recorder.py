"""Records the scale, softcap and casts that a model applies to its logits."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, NoReturn

import torch
from torch import nn

from humanline_fused.scores import LMHead

INSTEAD = "Use the logits path: head='logits' (--head logits)"


def _refuse(done: str) -> NoReturn:
    raise ValueError(
        f"head='fused': expected a model that scales, caps or casts its logits, got one that does {done} with them. "
        f"{INSTEAD}"
    )


@dataclass(frozen=True, eq=False)
class LogitsRecorder:
    """Represents ``outer · tanh(inner · logits)``, or ``inner · logits`` if ``outer`` is None.

    Args:
        head: hidden states [B, T, H], weight and bias of the model's head.
        dtype: dtype of the logits at this point.
        inner, outer: exact fractions, so that division and multiplication by the same number cancel.
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
        """Return the head with the recorded scale and softcap, which are computed in float32."""
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
        """Record a cast to a wider dtype (the softmax is computed in float32 anyway); refuse another device."""
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
