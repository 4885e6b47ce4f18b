"""Functions that launch kernels, as operators of torch where a compiler or a mode looks on, else called as they are."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.utils._python_dispatch import is_in_torch_dispatch_mode


class Operator:
    """A function of tensors that writes to none of them.

    Torch's dispatch of an operator costs the host several times what a launch does. Only graphs of torch.compile, fake
    tensors and dispatch modes need it.

    Args:
        function: annotated, as ``torch.library.custom_op`` needs it.
    """

    __name__: str

    def __init__(self, function: Callable[..., Any], name: str) -> None:
        wraps(function)(self)
        self._function = function
        self._op = torch.library.custom_op(f"humanline::{name}", function, mutates_args=())
        self.register_fake = self._op.register_fake

    def __call__(self, *args: Any) -> Any:
        seen = torch.compiler.is_compiling() or is_in_torch_dispatch_mode() or not all(map(_is_plain, args))
        return self._op(*args) if seen else self._function(*args)


def _is_plain(argument: Any) -> bool:
    """Return False for a tensor of a class that may define what torch's operators do with it."""
    return not isinstance(argument, Tensor) or type(argument) in (Tensor, Parameter)


def operator(name: str) -> Callable[[Callable[..., Any]], Operator]:
    """A decorator: the function as ``torch.ops.humanline.<name>``."""
    return lambda function: Operator(function, name)
