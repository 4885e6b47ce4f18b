"""A kernel that is right and slow: all that the budgets are there to catch, in one loop."""

import triton
import triton.language as tl


@triton.jit
def logp_of_row(row_ptr, target_id, V, stride_v, BLOCK_V: tl.constexpr):
    """In every iteration the maximum over the whole block; per element a load of its own, and a comparison."""
    row_max = -float("inf")
    sumexp = 0.0
    target = 0.0
    for start in range(0, V, BLOCK_V):
        columns = start + tl.arange(0, BLOCK_V)
        x = tl.load(row_ptr + columns * stride_v, mask=columns < V, other=-float("inf")).to(tl.float32)
        new_max = tl.maximum(row_max, tl.max(x))
        sumexp = sumexp * tl.exp(row_max - new_max) + tl.sum(tl.exp(x - new_max))
        target += tl.sum(tl.where(columns == target_id, x, 0.0))
        row_max = new_max
    return target - row_max - tl.log(sumexp)


@triton.jit(do_not_specialize=["V", "stride_logits_v"])
def slow_token_logp_kernel(logits_ptr, target_ids_ptr, logp_ptr, V, stride_logits_v, BLOCK_V: tl.constexpr):
    n = tl.program_id(0).to(tl.int64)
    logp = logp_of_row(logits_ptr + n * V, tl.load(target_ids_ptr + n), V, stride_logits_v, BLOCK_V)
    tl.store(logp_ptr + n, logp)
