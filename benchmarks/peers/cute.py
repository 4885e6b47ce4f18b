"""Mean cross-entropies on hidden states by kernels in CuTe DSL: QuACK's two, and Liger's for Hopper.

They are given the rows that count and up to 127 that they ignore, because the number of rows must be a multiple.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers.installed import LIGER_VERSION, QUACK_VERSION, Obstacle, needs

MULTIPLE = 128  # of rows: Liger's tile; QuACK's chunked form needs 8
IGNORED = -100

CrossEntropy = Callable[[Tensor, Tensor, Tensor], Tensor]
"""The mean, [], of hidden states [n, H], weight [V, H] and ids [n], some of which are :data:`IGNORED`."""


def of_padded_rows(cross_entropy: CrossEntropy) -> Callable[[Any, Any], Tensor]:
    """The value of a case on a batch."""

    def value(case: Any, batch: Any) -> Tensor:
        counted = batch.loss_mask.flatten().nonzero()[:, 0]
        more = -len(counted) % MULTIPLE
        rows = torch.nn.functional.pad(counted, (0, more))
        ids = torch.nn.functional.pad(batch.target_ids.flatten()[counted], (0, more), value=IGNORED)
        return cross_entropy(batch.hidden.flatten(0, 1).index_select(0, rows), batch.weight, ids)

    return value


def _quack(hidden: Tensor, weight: Tensor, ids: Tensor, epilogue: bool) -> Tensor:
    from quack.linear_cross_entropy import chunked_linear_cross_entropy  # pyright: ignore[reportMissingImports]

    return chunked_linear_cross_entropy(
        hidden, weight, ids, ignore_index=IGNORED, reduction="mean", tuned=False, use_scaled_exp=epilogue
    )


@of_padded_rows
def quack_chunked(hidden: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
    return _quack(hidden, weight, ids, epilogue=False)


@of_padded_rows
def quack_epilogue(hidden: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
    return _quack(hidden, weight, ids, epilogue=True)


@of_padded_rows
def liger_cute(hidden: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
    from liger_kernel.ops.cutedsl.ops.fused_linear_cross_entropy_sm90 import (  # pyright: ignore[reportMissingImports]
        liger_fused_linear_cross_entropy_sm90,
    )

    return liger_fused_linear_cross_entropy_sm90(hidden, weight, ids, ignore_index=IGNORED, reduction="mean")


def quack_product(left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    from quack.gemm_interface import gemm  # pyright: ignore[reportMissingImports]

    return gemm(left, right, out_dtype=dtype, tuned=False)


def on_hopper(obstacle: Obstacle) -> Obstacle:
    def of(device: torch.device) -> str | None:
        if device.type == "cuda" and (capability := torch.cuda.get_device_capability(device)) != (9, 0):
            return f"its kernels are for compute capability 9.0, this is {'.'.join(map(str, capability))}"
        return obstacle(device)

    return of


CUTE = "its kernels are in CuTe DSL, for a GPU"
QUACK_HERE = needs("quack-kernels", QUACK_VERSION, "cutlass", "tvm_ffi", "einops", "triton", gpu=CUTE, compiler=True)
EPILOGUE_HERE = on_hopper(QUACK_HERE)
LIGER_HERE = on_hopper(needs("liger-kernel", LIGER_VERSION, "cutlass", "triton", gpu=CUTE, compiler=True))

QUACK = f"quack-kernels {QUACK_VERSION}: linear_cross_entropy.py chunked_linear_cross_entropy, chunks of 4096 rows"
QUACK_CHUNKED = f"{QUACK}, use_scaled_exp=False, tuned=False: no search for the products' tiles", quack_chunked
QUACK_EPILOGUE = (
    f"{QUACK}, use_scaled_exp=True: the product's epilogue writes rounded exponentials, no dlogits",
    quack_epilogue,
)
LIGER_CUTE = (
    f"liger-kernel {LIGER_VERSION}: ops/cutedsl fused_linear_cross_entropy_sm90.py, all logits at once, "
    "both gradients also where one is asked for; V must be a multiple of 256",
    liger_cute,
)
