"""Device functions: the log-prob and the entropy of one row of logits, read once.

The sums are taken around the target's own logit, so the loop needs no maximum: one fma and one exp2 per element. A sum
can overflow only if another logit is more than 82 nats above the target's. Then the row is read again, for its maximum
and for the sums around that (docs/numerics.md).

Symbols, for logits x of one row with scores z(x) (docs/math.md, equations 1, 12 and 15). "Bits" are nats · log2 e.

==============  ======  ================================================================================================
sharpness       bits    log2 e · scale / temperature; with a cap log2 e · softcap / temperature
cap_slope       1       scale / softcap; not used without a cap
score           1       s(x) = x; with a cap tanh(cap_slope · x). z = sharpness · s
point           logit   the x around which the sums are taken: the target's logit, or the row's maximum
center          1       the point's score
weight          1       w(x) = exp(z(x) − z(point)) = exp2(log2_weight)
constant        bits    the summand of log2_weight that is the same for all x of a row
log2_point      bits    log2_weight at the point itself: not 0 but the rounding of the constant, which every weight has
log2_total      bits    log2 Σ w − log2_point; the probability of x is exp2((z(x) − z(point)) − log2_total)
softmax         tuple   (sharpness, cap_slope) of one row
==============  ======  ================================================================================================

Parts of a row, in elements. With them every access in a loop is 16 bytes wide, for any vocabulary, stride and address.

==============  ================================================================================================
head            number of elements before the first 16-byte boundary, less than one vector
body            number of elements in whole 16-byte vectors after the head
edge            the elements before and after the body
==============  ================================================================================================

EXACT is the order of operations in log2_weight. False: one fma of the score and the constant −sharpness · center, for
sums around the target, where log2_point takes the constant's rounding out again. True: score − center first, then one
fma; an offset common to all logits of a row then costs no digits. True for sums around the maximum, and for dlogits.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
LOWEST = tl.constexpr(-3.4028234663852886e38)
SATURATED = tl.constexpr(8.01773357391357422)  # from here on tanh is 1
NEGLIGIBLE = tl.constexpr(-1e4)  # a finite log2 of a weight that is 0 in float32: 0 · −inf would be NaN


@triton.jit
def row_parts(row_ptr, V):
    """(head, body) lengths: ``row_ptr + head`` lies on a 16-byte boundary, ``body`` is a multiple of 16 bytes."""
    ITEMSIZE: tl.constexpr = row_ptr.dtype.element_ty.primitive_bitwidth // 8
    VECTOR: tl.constexpr = 16 // ITEMSIZE
    head = tl.minimum((-row_ptr.to(tl.int64) & 15).to(tl.int32) // ITEMSIZE, V)
    return head, (V - head) // VECTOR * VECTOR


@triton.jit
def aligned(row_ptr, head):
    """The address of the body, marked as a multiple of 16 for the compiler."""
    return tl.multiple_of(row_ptr + head, 16)


@triton.jit
def last_tile(body_ptr, body, BLOCK_V: tl.constexpr):
    """(offsets, inside) of the body's last, partial tile. A 16-byte vector is inside as a whole, or not at all."""
    VECTOR: tl.constexpr = 128 // body_ptr.dtype.element_ty.primitive_bitwidth
    offsets = body // BLOCK_V * BLOCK_V + tl.arange(0, BLOCK_V)
    return offsets, offsets < tl.multiple_of(body, VECTOR)


@triton.jit
def edge_columns(row_ptr, V, head, body):
    """(columns, inside) of the edge: less than a vector before the body, and less than a vector after it."""
    VECTOR: tl.constexpr = 128 // row_ptr.dtype.element_ty.primitive_bitwidth
    lane = tl.arange(0, 2 * VECTOR)
    after = lane - VECTOR + head + body
    return tl.where(lane < VECTOR, lane, after), tl.where(lane < VECTOR, lane < head, after < V)


@triton.jit
def sum_in_thread(x, VECTOR: tl.constexpr):
    """Sums over the elements of each 16-byte load, which one thread holds: as many adds, 1/VECTOR of the registers."""
    return tl.sum(tl.reshape(x, [x.shape[0] // VECTOR, VECTOR]), axis=1)


@triton.jit
def add_products(total, x, y):
    """``total`` + x · y, summed over pairs of neighbours: one fma per element, in half the registers."""
    HALF: tl.constexpr = x.shape[0] // 2
    x_even, x_odd = tl.split(tl.reshape(x, [HALF, 2]))
    y_even, y_odd = tl.split(tl.reshape(y, [HALF, 2]))
    return tl.fma(x_even, y_even, tl.fma(x_odd, y_odd, total))


@triton.jit
def tanh(x):
    """x · P(x²) / Q(x²), in error by 6 · 2⁻²³ of itself for x of any size; NaN stays NaN.

    A quotient of exponentials would be in error by as much of 1, so a small x would lose its digits. The coefficients
    are Eigen's (``generic_fast_tanh_float``). A root and its square cost less than a division.
    """
    x = tl.maximum(x, -SATURATED, propagate_nan=tl.PropagateNan.ALL)
    x = tl.minimum(x, SATURATED, propagate_nan=tl.PropagateNan.ALL)
    y = x * x
    numerator = tl.fma(tl.fma(y, 1.394553628e-8, 2.102733560e-5), y, 3.520756727e-3)
    numerator = tl.fma(tl.fma(numerator, y, 1.340216100e-1), y, 1.0)
    denominator = tl.fma(tl.fma(y, 8.015776984e-7, 3.326951409e-4), y, 2.597254514e-2)
    denominator = tl.fma(tl.fma(denominator, y, 4.673548340e-1), y, 1.0)
    root = tl.rsqrt(denominator)
    return x * numerator * (root * root)


@triton.jit
def score(x, softmax, HAS_SOFTCAP: tl.constexpr):
    """s(x) of the table above."""
    if HAS_SOFTCAP:
        _, cap_slope = softmax
        x = tanh(x * cap_slope)
    return x


@triton.jit
def log2_weight(x, center, constant, softmax, HAS_SOFTCAP: tl.constexpr, EXACT: tl.constexpr):
    """log2 exp(z(x) − z(point)), plus ``constant`` if EXACT; else that of the table above is the constant."""
    sharpness, _ = softmax
    s = score(x, softmax, HAS_SOFTCAP)
    if EXACT:
        s -= center
    return tl.fma(s, sharpness, constant)


@triton.jit
def sum_weights(
    row_ptr,
    V,
    center,
    constant,
    softmax,
    HAS_SOFTCAP: tl.constexpr,
    HAS_ENTROPY: tl.constexpr,
    EXACT: tl.constexpr,
    BLOCK_V: tl.constexpr,
    EVICTION: tl.constexpr,
    TILES_AT_ONCE: tl.constexpr = 1,
):
    """(Σ w, Σ w log2 w) over the row; the second only with HAS_ENTROPY.

    TILES_AT_ONCE tiles are loaded before the first is added. They are added one after another, so the sums are the
    same, bit by bit.
    """
    VECTOR: tl.constexpr = 128 // row_ptr.dtype.element_ty.primitive_bitwidth
    head, body = row_parts(row_ptr, V)
    columns, inside = edge_columns(row_ptr, V, head, body)
    x = tl.load(row_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    log2_w = tl.where(inside, log2_weight(x, center, constant, softmax, HAS_SOFTCAP, EXACT), -float("inf"))
    w = tl.exp2(log2_w)
    edges = tl.sum(w)
    edges_log = tl.sum(w * tl.maximum(log2_w, NEGLIGIBLE)) if HAS_ENTROPY else 0.0

    body_ptr = aligned(row_ptr, head)
    # The partial tile first: it initialises the totals, and the loop needs no mask.
    offsets, inside = last_tile(body_ptr, body, BLOCK_V)
    x = tl.load(body_ptr + offsets, mask=inside, other=0.0, eviction_policy=EVICTION).to(tl.float32)
    log2_w = tl.where(inside, log2_weight(x, center, constant, softmax, HAS_SOFTCAP, EXACT), -float("inf"))
    w = tl.exp2(log2_w)
    first = tl.arange(0, BLOCK_V // VECTOR) == 0
    total = sum_in_thread(w, VECTOR) + tl.where(first, edges, 0.0)
    total_log = tl.zeros([BLOCK_V // 2], tl.float32)
    if HAS_ENTROPY:
        total_log += tl.where(tl.arange(0, BLOCK_V // 2) == 0, edges_log, 0.0)
        total_log = add_products(total_log, w, tl.maximum(log2_w, NEGLIGIBLE))
    for start in tl.range(0, body // BLOCK_V * BLOCK_V, BLOCK_V, loop_unroll_factor=TILES_AT_ONCE):
        x = tl.load(body_ptr + start + tl.arange(0, BLOCK_V), eviction_policy=EVICTION).to(tl.float32)
        log2_w = log2_weight(x, center, constant, softmax, HAS_SOFTCAP, EXACT)
        w = tl.exp2(log2_w)
        total += sum_in_thread(w, VECTOR)
        if HAS_ENTROPY:
            total_log = add_products(total_log, w, tl.maximum(log2_w, NEGLIGIBLE))
    return tl.sum(total), tl.sum(total_log) if HAS_ENTROPY else 0.0


@triton.jit
def maximum_of_row(row_ptr, V, BLOCK_V: tl.constexpr):
    """The row's maximum, at least the lowest finite number. NaN is ignored here: the sum shows it."""
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
    TILES_AT_ONCE: tl.constexpr = 1,
):
    """(logp, entropy, point, log2_total) of one row; all but the point NaN for an id outside [0, V).

    The first two in nats. Point and total stay apart: a target far below the others must not take their digits.
    """
    target, legal = load_target(row_ptr, target_id, V)
    sharpness, _ = softmax
    point, center = target, score(target, softmax, HAS_SOFTCAP)
    constant = -center * sharpness
    total, total_log = sum_weights(
        row_ptr, V, center, constant, softmax, HAS_SOFTCAP, HAS_ENTROPY, False, BLOCK_V, EVICTION, TILES_AT_ONCE
    )
    log2_point = tl.fma(center, sharpness, constant)
    half_target = 0.5 * log2_point  # half, because in whole bits the lowest float would be −inf
    # Below 1e36, about 83 nats above the point, a weight times its log2 is finite. A constant of more than 2^31 bits
    # has a rounding that no weight holds. One comparison, because two cost a register; NaN is False in it.
    if not (total + 1e30 * tl.abs(constant) < 1e36):
        # Half the tile: a rare path must not cost the kernel registers.
        point = maximum_of_row(row_ptr, V, BLOCK_V // 2)
        center = score(point, softmax, HAS_SOFTCAP)
        total, total_log = sum_weights(
            row_ptr, V, center, 0.0, softmax, HAS_SOFTCAP, HAS_ENTROPY, True, BLOCK_V // 2, EVICTION
        )
        log2_point = log2_weight(point, center, 0.0, softmax, HAS_SOFTCAP, True)
        half_target = (score(target, softmax, HAS_SOFTCAP) - center) * (0.5 * sharpness)
    log2_sum = tl.log2(total)
    log2_total = log2_sum - log2_point
    logp = (half_target - 0.5 * log2_sum) * (2 * LN2)
    # Rounding can lift the log-prob of a target with probability 1 above 0 by an ulp. NaN stays NaN.
    logp = tl.where(legal, tl.where(logp > 0, 0.0, logp), float("nan"))
    entropy = 0.0
    if HAS_ENTROPY:
        entropy = (log2_sum - total_log / total) * LN2
        entropy = tl.where(legal, tl.where(entropy < 0, 0.0, entropy), float("nan"))
    return logp, entropy, point, tl.where(legal, log2_total, float("nan"))
