"""CPU tensors that say they are on a GPU, to see where the host waits for one and how memory is copied to it.

Only eager operations run on them. Products with float32 results of half-precision factors are computed as a GPU does.
"""

import traceback
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

DEVICE = torch.device("cuda", 0)
WAITING = ("_local_scalar_dense", "nonzero", "equal", "masked_select", "_unique2", "bincount", "is_nonzero")
aten = torch.ops.aten


class OnGPU(Tensor):
    """A tensor on the pretended GPU with its values in ``held``; to autograd a meta tensor, which needs no driver."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # pyright: ignore[reportAssignmentType]

    @staticmethod
    def __new__(cls, held: Tensor) -> "OnGPU":
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        tensor = Tensor._make_wrapper_subclass(cls, held.shape, device="meta", **layout)  # pyright: ignore
        tensor.held = held
        return tensor

    @property
    def device(self) -> torch.device:  # pyright: ignore[reportIncompatibleVariableOverride]
        return DEVICE

    @property
    def is_cuda(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return True

    def tolist(self) -> Any:
        return self.to("cpu").tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} outside of PretendedGPU")


class PretendedGPU(TorchDispatchMode):
    """Runs operations on the pretended GPU, and records what the host does with it.

    Attributes:
        waits: operations whose result the host needs, each with the file that called.
        unfinished: copies to host memory for which the host does not wait, though nothing says when they end.
        asynchronous: for each copy from host memory whether the host goes on: from pinned memory, not blocking.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.unfinished: list[str] = []
        self.asynchronous: list[bool] = []
        self._pinned: list[Tensor] = []
        monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: None)
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
        monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: self._pin(tensor))

    def put(self, tensor: Tensor) -> Tensor:
        """The tensor on the GPU, uncounted."""
        return OnGPU(tensor.detach()).requires_grad_(tensor.requires_grad)

    def _pin(self, tensor: Tensor) -> Tensor:
        assert not isinstance(tensor, OnGPU)
        self._pinned.append(tensor.clone())
        return self._pinned[-1]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        goes_to = kwargs.get("device")
        here = goes_to is not None and torch.device(goes_to).type != "cpu"
        if not here and not any(isinstance(tensor, OnGPU) for tensor in tensors):
            return func(*args, **kwargs)
        self._record(func, args, kwargs, tensors, here)
        if here:
            kwargs["device"] = "cpu"
        inner_args, inner_kwargs = tree_map_only(OnGPU, lambda tensor: tensor.held, (args, kwargs))
        out = _computed(func, inner_args, inner_kwargs)
        if goes_to is not None and not here:
            return out
        if func._schema.is_mutable:
            return kwargs["out"] if "out" in kwargs else args[0]
        return tree_map_only(Tensor, OnGPU, out)

    def _record(self, func: Any, args: Any, kwargs: Any, tensors: list[Tensor], here: bool) -> None:
        name = func.overloadpacket.__name__
        by_mask = name in ("index", "index_put_") and any(t is not None and t.dtype == torch.bool for t in args[1])
        to_host = kwargs.get("device") is not None and not here and isinstance(args[0], OnGPU)
        if name in WAITING or by_mask or to_host:
            files = (Path(frame.filename) for frame in reversed(traceback.extract_stack()[:-2]))
            mine = next(f"{file.parent.name}/{file.name}" for file in files if "torch" not in file.parts)
            (self.unfinished if to_host and kwargs.get("non_blocking") else self.waits).append(f"{name} in {mine}")
        from_host = [t for t in tensors if not isinstance(t, OnGPU) and t.ndim] if name in ("_to_copy", "copy_") else []
        pinned = [any(tensor is pinned for pinned in self._pinned) for tensor in from_host]
        self.asynchronous += [own and bool(kwargs.get("non_blocking")) for own in pinned]


def _computed(func: Any, args: Any, kwargs: Any) -> Any:
    """The result on the CPU, also of products that only a GPU has."""
    if func is aten.mm.dtype:
        return args[0].to(args[2]) @ args[1].to(args[2])
    if func is aten.addmm.dtype_out:
        total, a, b, dtype = args
        return kwargs["out"].copy_(torch.addmm(total, a.to(dtype), b.to(dtype), beta=kwargs.get("beta", 1)))
    return func(*args, **kwargs)
