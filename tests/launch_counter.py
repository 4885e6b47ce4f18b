"""Counts what a GPU would be asked to do: launches of kernels, and operations of torch that compute or copy."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._library.custom_ops import CustomOpDef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from triton.runtime.interpreter import InterpretedFunction
from triton.runtime.jit import JITFunction

from humanline_fused import Logits
from humanline_fused.validation import values
from tests.inputs import loss_of, random_batch

ALLOCATIONS = ("empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided")
VIEWS = ("detach", "alias", "view", "unbind", "_unsafe_view", "_reshape_alias")
OF_THE_HOST = (*ALLOCATIONS, *VIEWS, "promote_types")


class Launches(TorchDispatchMode):
    """Records the names of kernels and of torch's operations, without allocations, views and empty results."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self._paused = 0

    def uncounted(self, function: Any) -> Any:
        """The function, whose launches are not recorded."""

        def call(*args: Any, **kwargs: Any) -> Any:
            self._paused += 1
            try:
                return function(*args, **kwargs)
            finally:
                self._paused -= 1

        return call

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out, name = func(*args, **(kwargs or {})), func._schema.name.removeprefix("aten::")
        is_empty = all(isinstance(leaf, Tensor) and not leaf.numel() for leaf in tree_leaves(out))
        if name not in OF_THE_HOST and not func.is_view and not is_empty and not self._paused:
            self.seen.append(name)
        return out


def launches_of_loss(loss: str, device: torch.device) -> tuple[list[str], list[str]]:
    """The launches of a loss of policy and reference on logits, and those of its backward.

    Args:
        loss: an objective, or "grpo in one launch".
    """
    batch = random_batch(device)
    policy, reference = Logits(batch.logits.requires_grad_()), Logits(batch.ref_logits)
    objective, _, one_launch = loss.partition(" ")
    settings: dict[str, Any] = {"impl": "triton", **({"one_launch": True} if one_launch else {})}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(values, "may_look_at", lambda tensor: False)  # a CPU's checks of values
        with launches(patch) as forward:
            result = loss_of(objective, policy, reference, batch, **settings).loss
        with launches(patch) as backward:
            result.backward()
    return forward, backward


@contextmanager
def no_launch_and_no_look() -> Iterator[None]:
    """Kernels do not run, and no check looks at values, as on a GPU, where it would wait."""
    with pytest.MonkeyPatch.context() as patch:
        for kernel in (InterpretedFunction, JITFunction):
            patch.setattr(kernel, "run", lambda *args, **kwargs: None)
        patch.setattr(values, "may_look_at", lambda tensor: False)
        yield


@contextmanager
def launches(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The launches inside, in order. Kernels do not run: numbers are undefined."""
    mode = Launches()

    def note(kernel: Any, *args: Any, **kwargs: Any) -> None:
        mode.seen.append(kernel.fn.__name__)

    def body(operation: Any, *args: Any) -> Any:
        """A custom op's own function, in which the mode sees what it would not see inside an operation."""
        return operation._init_fn(*args)

    with monkeypatch.context() as patch, mode:
        for kernel in (InterpretedFunction, JITFunction):
            patch.setattr(kernel, "run", note)
        patch.setattr(CustomOpDef, "__call__", body)
        yield mode.seen
