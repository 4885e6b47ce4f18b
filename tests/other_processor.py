"""Matrix products as another processor may round them: their last bits depend on the shapes.

``OTHER_PROCESSOR=1 pytest …`` runs any test on them, in its child processes too. A library chooses its algorithm by
processor and shape (blocks of AMX, panels of AVX), so a row of a product may have other bits where the product has more
rows. A test that passes without and fails with it asks for bits that only some processors give: docs/numerics.md says
which are promised.
"""

import os
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

library = torch.library.Library("aten", "IMPL")


def product(a: Tensor, b: Tensor) -> Tensor:
    """[…, M, K] · […, K, N], in float32 at least, as the sum of two products: M and N decide where K is cut."""
    dtype = torch.promote_types(a.dtype, torch.float32) if a.dtype.is_floating_point else a.dtype
    factors: list[Any] = [np.from_dlpack(factor.detach().to(dtype)) for factor in (a, b)]
    x, y = factors
    (M, K), N = x.shape[-2:], y.shape[-1]
    cut = (M + N) % max(K, 1)
    return torch.from_dlpack(x[..., :cut] @ y[..., :cut, :] + x[..., cut:] @ y[..., cut:, :])


def multiplied(a: Tensor, b: Tensor) -> Tensor:
    return product(a, b).to(a.dtype)


def multiplied_and_added(c: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """Return the product, rounded once to the factors' dtype, as on every processor."""
    total = alpha * product(a, b)
    return (total if beta == 0 else beta * c.to(total.dtype) + total).to(a.dtype)


def into(out: Tensor, result: Tensor) -> Tensor:
    return out.resize_(result.shape).copy_(result)


def multiplied_into(a: Tensor, b: Tensor, *, out: Tensor) -> Tensor:
    return into(out, multiplied(a, b))


def multiplied_and_added_into(c: Tensor, a: Tensor, b: Tensor, *, out: Tensor, **factors: Any) -> Tensor:
    return into(out, multiplied_and_added(c, a, b, **factors))


def multiplied_and_added_in_place(c: Tensor, a: Tensor, b: Tensor, **factors: Any) -> Tensor:
    return c.copy_(multiplied_and_added(c, a, b, **factors))


def multiply_as_another_processor_if_asked() -> None:
    """Replace PyTorch's products on the CPU where the environment has ``OTHER_PROCESSOR=1``."""
    if os.environ.get("OTHER_PROCESSOR") != "1":
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch tells that its own are replaced
        for plain, added in (("mm", "addmm"), ("bmm", "baddbmm")):
            library.impl(plain, multiplied, "CPU")
            library.impl(f"{plain}.out", multiplied_into, "CPU")
            library.impl(added, multiplied_and_added, "CPU")
            library.impl(f"{added}.out", multiplied_and_added_into, "CPU")
            library.impl(f"{added}_", multiplied_and_added_in_place, "CPU")
