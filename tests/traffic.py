"""Counts the bytes that operations read from and write to tensors of one shape."""

from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

EMPTY = ("aten::empty", "aten::new_empty")
OVERWRITING = ("aten::zero_", "aten::fill_", "aten::copy_")


class Traffic(TorchDispatchMode):
    """
    Args:
        shape: of the tensors that are counted, whatever their dtype.
        other_than: a tensor of that shape that is not counted.
    """

    def __init__(self, shape: tuple[int, ...], other_than: Tensor | None = None) -> None:
        super().__init__()
        self.shape, self.read, self.written = shape, 0, 0
        self._others = () if other_than is None else (other_than.data_ptr(),)

    @property
    def total(self) -> int:
        return self.read + self.written

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out, name = func(*args, **kwargs), func._schema.name
        inputs, outputs = self._counted(args, kwargs), self._counted(out)
        if name.startswith(EMPTY):
            return out
        if func._schema.is_mutable:
            overwrites = name in OVERWRITING or "out" in kwargs or kwargs.get("beta") == 0
            own = {tensor.data_ptr() for tensor in outputs} if overwrites else set()
        else:
            known = {tensor.data_ptr() for tensor in inputs}
            if any(tensor.data_ptr() in known for tensor in outputs):  # a view
                return out
            own = set()
        self.read += sum(tensor.nbytes for tensor in inputs if tensor.data_ptr() not in own)
        self.written += sum(tensor.nbytes for tensor in outputs)
        return out

    def _counted(self, *tree: Any) -> list[Tensor]:
        tensors = [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor) and tuple(leaf.shape) == self.shape]
        return [tensor for tensor in tensors if tensor.data_ptr() not in self._others]
