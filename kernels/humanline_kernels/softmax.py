"""Device functions: the log-prob and the entropy of one row of logits, read once.

A row is read in three parts, so that every access in a loop is 16 bytes wide whatever vocabulary, strides and base are:
the ``head`` before its first 16-byte boundary, a ``body`` of whole 16-byte vectors, and less than one vector after.

The sums are taken around the target's own logit, so nothing has to be known about the row beforehand: no maximum in the
loop, one fma and one exp2 per element. Only where another logit is more than 82 nats above the target's could a sum
overflow; then the row's maximum is looked for, and the sums taken around that.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
LOWEST = tl.constexpr(-3.4028234663852886e38)
NEGLIGIBLE = tl.constexpr(-1e4)  # a finite log2 of what is 0 in float32: 0 · −inf would be NaN


@triton.jit
def row_parts(row_ptr, V):
    """(head, body) lengths: ``row_ptr + head`` lies on a 16-byte boundary, ``body`` is a multiple of 16 bytes."""
    ITEMSIZE: tl.constexpr = row_ptr.dtype.element_ty.primitive_bitwidth // 8
    VECTOR: tl.constexpr = 16 // ITEMSIZE
    head = tl.minimum((-row_ptr.to(tl.int64) & 15).to(tl.int32) // ITEMSIZE, V)
    return head, (V - head) // VECTOR * VECTOR


@triton.jit
def aligned(row_ptr, head):
    """Where the body begins, as the compiler must know it for 16-byte access."""
    return tl.multiple_of(row_ptr + head, 16)


@triton.jit
def last_tile(body_ptr, body, BLOCK_V: tl.constexpr):
    """(offsets, inside) of the body's tile that is not whole. Of a 16-byte vector all is inside, or nothing."""
    VECTOR: tl.constexpr = 128 // body_ptr.dtype.element_ty.primitive_bitwidth
    offsets = body // BLOCK_V * BLOCK_V + tl.arange(0, BLOCK_V)
    return offsets, offsets < tl.multiple_of(body, VECTOR)


@triton.jit
def edge_columns(row_ptr, V, head, body):
    """(columns, inside) of what lies before the body and after it, less than a vector each."""
    VECTOR: tl.constexpr = 128 // row_ptr.dtype.element_ty.primitive_bitwidth
    lane = tl.arange(0, 2 * VECTOR)
    after = lane - VECTOR + head + body
    return tl.where(lane < VECTOR, lane, after), tl.where(lane < VECTOR, lane < head, after < V)


@triton.jit
def sum_in_thread(x, VECTOR: tl.constexpr):
    """Sums of what one thread loads at once: no more adds than one by one, in an eighth of the registers."""
    return tl.sum(tl.reshape(x, [x.shape[0] // VECTOR, VECTOR]), axis=1)


@triton.jit
def add_products(total, x, y):
    """``total`` + x · y, pair by pair: one fma per element, spelled out, in half the registers."""
    HALF: tl.constexpr = x.shape[0] // 2
    x_even, x_odd = tl.split(tl.reshape(x, [HALF, 2]))
    y_even, y_odd = tl.split(tl.reshape(y, [HALF, 2]))
    return tl.fma(x_even, y_even, tl.fma(x_odd, y_odd, total))


@triton.jit
def cap_root(x, unit, cap_slope):
    """q ≥ 0 such that the capped x is ``sharpness · softcap − q²``; ``unit`` is 1 / (2 · sharpness · softcap).

    A root and its square cost less than a division.
    """
    return tl.rsqrt(tl.fma(tl.exp2(x * cap_slope), unit, unit))


@triton.jit
def log2_weight(x, point, log2_offset, softmax, HAS_SOFTCAP: tl.constexpr, EXACT: tl.constexpr):
    """``log2_offset`` + log2 exp(z(x) − z(point)), z being what the softmax is taken of (docs/math.md, equation 1).

    In one fma, whose constant is rounded once and equally for every x; or with the difference first, which no offset of
    the logits can blur.
    """
    sharpness, softcap, cap_slope = softmax
    if HAS_SOFTCAP:
        unit = 0.5 / (sharpness * softcap)
        root, point_root = cap_root(x, unit, cap_slope), cap_root(point, unit, cap_slope)
        return tl.fma(root * -1.0, root, tl.fma(point_root, point_root, log2_offset))
    if EXACT:
        return tl.fma(x - point, sharpness, log2_offset)
    return tl.fma(x, sharpness, tl.fma(-point, sharpness, log2_offset))


@triton.jit
def sum_weights(
    row_ptr,
    V,
    point,
    softmax,
    HAS_SOFTCAP: tl.constexpr,
    HAS_ENTROPY: tl.constexpr,
    EXACT: tl.constexpr,
    BLOCK_V: tl.constexpr,
    EVICTION: tl.constexpr,
):
    """(Σ w, Σ w log2 w) over the row, w = exp(z(x) − z(point)); the second only with HAS_ENTROPY."""
    VECTOR: tl.constexpr = 128 // row_ptr.dtype.element_ty.primitive_bitwidth
    head, body = row_parts(row_ptr, V)
    columns, inside = edge_columns(row_ptr, V, head, body)
    x = tl.load(row_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    log2_w = log2_weight(x, point, 0.0, softmax, HAS_SOFTCAP, EXACT)
    w = tl.where(inside, tl.exp2(log2_w), 0.0)
    edges = tl.sum(w)
    edges_log = tl.sum(w * tl.maximum(log2_w, NEGLIGIBLE)) if HAS_ENTROPY else 0.0

    body_ptr = aligned(row_ptr, head)
    offsets, inside = last_tile(body_ptr, body, BLOCK_V)
    x = tl.load(body_ptr + offsets, mask=inside, other=0.0, eviction_policy=EVICTION).to(tl.float32)
    log2_w = log2_weight(x, point, 0.0, softmax, HAS_SOFTCAP, EXACT)
    w = tl.where(inside, tl.exp2(log2_w), 0.0)
    first = tl.arange(0, BLOCK_V // VECTOR) == 0
    total = sum_in_thread(w, VECTOR) + tl.where(first, edges, 0.0)
    total_log = tl.zeros([BLOCK_V // 2], tl.float32)
    if HAS_ENTROPY:
        total_log += tl.where(tl.arange(0, BLOCK_V // 2) == 0, edges_log, 0.0)
        total_log = add_products(total_log, w, tl.maximum(log2_w, NEGLIGIBLE))
    for start in range(0, body // BLOCK_V * BLOCK_V, BLOCK_V):
        x = tl.load(body_ptr + start + tl.arange(0, BLOCK_V), eviction_policy=EVICTION).to(tl.float32)
        log2_w = log2_weight(x, point, 0.0, softmax, HAS_SOFTCAP, EXACT)
        w = tl.exp2(log2_w)
        total += sum_in_thread(w, VECTOR)
        if HAS_ENTROPY:
            total_log = add_products(total_log, w, tl.maximum(log2_w, NEGLIGIBLE))
    return tl.sum(total), tl.sum(total_log) if HAS_ENTROPY else 0.0


@triton.jit
def maximum_of_row(row_ptr, V, BLOCK_V: tl.constexpr):
    """The row's largest number, at least the lowest finite one. NaN is passed over: the sum will show it."""
    head, body = row_parts(row_ptr, V)
    body_ptr = aligned(row_ptr, head)
    largest = tl.full([BLOCK_V], LOWEST, tl.float32)
    for start in range(0, body // BLOCK_V * BLOCK_V, BLOCK_V):
        largest = tl.maximum(largest, tl.load(body_ptr + start + tl.arange(0, BLOCK_V)).to(tl.float32))
    offsets, inside = last_tile(body_ptr, body, BLOCK_V)
    largest = tl.maximum(largest, tl.load(body_ptr + offsets, mask=inside, other=-float("inf")).to(tl.float32))
    columns, inside = edge_columns(row_ptr, V, head, body)
    edges = tl.load(row_ptr + columns, mask=inside, other=-float("inf")).to(tl.float32)
    return tl.maximum(tl.max(largest), tl.max(edges))


@triton.jit
def load_target(row_ptr, target_id, V):
    """(logit, legal) of the target; the row's first logit where the id lies outside [0, V)."""
    legal = (target_id >= 0) & (target_id < V)
    return tl.load(row_ptr + tl.where(legal, target_id, 0).to(tl.int64)).to(tl.float32), legal


@triton.jit
def score_row(
    row_ptr,
    target_id,
    V,
    softmax,
    HAS_SOFTCAP: tl.constexpr,
    HAS_ENTROPY: tl.constexpr,
    BLOCK_V: tl.constexpr,
    EVICTION: tl.constexpr,
):
    """(logp, entropy, point, log2_total) of one row; all but the point NaN for an id outside [0, V).

    The first two in nats. The probability of a logit x is exp2(log2_weight(x, point, −log2_total)): the two are kept
    apart, because a target far below the others must not take their digits (docs/numerics.md).
    """
    point, legal = load_target(row_ptr, target_id, V)
    target = point
    total, total_log = sum_weights(row_ptr, V, point, softmax, HAS_SOFTCAP, HAS_ENTROPY, False, BLOCK_V, EVICTION)
    # What the rounded constant of the fma makes of the point itself: the same rounding is in every weight.
    log2_point = log2_weight(point, point, 0.0, softmax, HAS_SOFTCAP, False)
    log2_target = log2_point
    # A weight times its log2 stays finite below this; False for NaN too.
    if not (total < 1e36):
        # Half the tile: what is rare must not cost the kernel its registers.
        point = maximum_of_row(row_ptr, V, BLOCK_V // 2)
        total, total_log = sum_weights(
            row_ptr, V, point, softmax, HAS_SOFTCAP, HAS_ENTROPY, True, BLOCK_V // 2, EVICTION
        )
        log2_point = log2_weight(point, point, 0.0, softmax, HAS_SOFTCAP, True)
        log2_target = log2_weight(target, point, 0.0, softmax, HAS_SOFTCAP, True)
    log2_total = tl.log2(total)
    logp = (log2_target - log2_total) * LN2
    # Rounding can lift a certain target's log-prob above 0 by an ulp; NaN stays NaN.
    logp = tl.where(legal, tl.where(logp > 0, 0.0, logp), float("nan"))
    entropy = 0.0
    if HAS_ENTROPY:
        entropy = (log2_total - total_log / total) * LN2
        entropy = tl.where(legal, tl.where(entropy < 0, 0.0, entropy), float("nan"))
    return logp, entropy, point, tl.where(legal, log2_total - log2_point, float("nan"))
