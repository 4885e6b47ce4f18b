"""Device functions: the log-prob and the entropy of one row of logits, read once.

The sums are taken around the target's own logit, so the loop needs no maximum: one fma and one exp2 per element. A sum
can overflow only if another logit is more than 82 nats above the target's. Then the row is read again, for its maximum
and for the sums around that (docs/numerics.md).

Symbols, for logits x of one row with scores z(x) (docs/math.md, equations 1, 12 and 15). "Bits" are nats · log2 e.

==============  ======  ================================================================================================
sharpness       bits    log2 e · scale / temperature, so z = sharpness · x; with a cap log2 e / temperature
cap_slope       bits    2 · log2 e · scale / softcap; 0 without a cap
unit            1/bits  1 / (2 · sharpness · softcap)
root            √bits   q(x) = 1 / √(unit · (1 + exp2(cap_slope · x))); with a cap z = sharpness · softcap − q²
point           logit   the x around which the sums are taken: the target's logit, or the row's maximum
weight          1       w(x) = exp(z(x) − z(point)) = exp2(log2_weight)
log2_offset     bits    log2 of a factor of all weights: −log2_total makes probabilities of them
constant        bits    the summand of log2_weight that is the same for all x of a row, with log2_offset; rounded once
log2_point      bits    log2_weight at the point itself: not 0 but the rounding of the constant, which every weight has
log2_total      bits    log2 Σ w − log2_point; the probability of x is exp2((z(x) − z(point)) − log2_total)
softmax         tuple   (sharpness, unit, cap_slope) of one row
==============  ======  ================================================================================================

Parts of a row, in elements. With them every access in a loop is 16 bytes wide, for any vocabulary, stride and address.

==============  ================================================================================================
head            number of elements before the first 16-byte boundary, less than one vector
body            number of elements in whole 16-byte vectors after the head
edge            the elements before and after the body
==============  ================================================================================================

EXACT is the order of operations in log2_weight. False: one fma of x and the constant. True: x − point first, then one
fma; an offset common to all logits of a row then costs no digits. True for float32 dlogits, and for sums around the
maximum. False for 16-bit dlogits, whose own rounding is coarser, and for sums around the target, where log2_point takes
the rounding out again. With a cap there is one order, and EXACT is ignored.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
LOWEST = tl.constexpr(-3.4028234663852886e38)
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
def softmax_of_row(sharpness, softcap, cap_slope):
    """(sharpness, unit, cap_slope). Without a cap the last two are not used."""
    return sharpness, 0.5 / (sharpness * softcap), cap_slope


@triton.jit
def cap_root(x, unit, cap_slope):
    """q(x) of the table above. A root and its square cost less than a division."""
    return tl.rsqrt(tl.fma(tl.exp2(x * cap_slope), unit, unit))


@triton.jit
def weight_constant(point, log2_offset, softmax, HAS_SOFTCAP: tl.constexpr, EXACT: tl.constexpr):
    """The constant of :func:`log2_weight` for weights around ``point`` times exp2(``log2_offset``)."""
    sharpness, unit, cap_slope = softmax
    if HAS_SOFTCAP:
        root = cap_root(point, unit, cap_slope)
        return tl.fma(root, root, log2_offset)
    if EXACT:
        return log2_offset
    return tl.fma(-point, sharpness, log2_offset)


@triton.jit
def log2_weight(x, point, constant, softmax, HAS_SOFTCAP: tl.constexpr, EXACT: tl.constexpr):
    """log2 exp(z(x) − z(point)), plus the offset in the constant, which is :func:`weight_constant`'s."""
    sharpness, unit, cap_slope = softmax
    if HAS_SOFTCAP:
        root = cap_root(x, unit, cap_slope)
        return tl.fma(root * -1.0, root, constant)
    if EXACT:
        return tl.fma(x - point, sharpness, constant)
    return tl.fma(x, sharpness, constant)


@triton.jit
def sum_weights(
    row_ptr,
    V,
    point,
    constant,
    softmax,
    HAS_SOFTCAP: tl.constexpr,
    HAS_ENTROPY: tl.constexpr,
    EXACT: tl.constexpr,
    BLOCK_V: tl.constexpr,
    EVICTION: tl.constexpr,
):
    """(Σ w, Σ w log2 w) over the row; the second only with HAS_ENTROPY."""
    VECTOR: tl.constexpr = 128 // row_ptr.dtype.element_ty.primitive_bitwidth
    head, body = row_parts(row_ptr, V)
    columns, inside = edge_columns(row_ptr, V, head, body)
    x = tl.load(row_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    log2_w = log2_weight(x, point, constant, softmax, HAS_SOFTCAP, EXACT)
    w = tl.where(inside, tl.exp2(log2_w), 0.0)
    edges = tl.sum(w)
    edges_log = tl.sum(w * tl.maximum(log2_w, NEGLIGIBLE)) if HAS_ENTROPY else 0.0

    body_ptr = aligned(row_ptr, head)
    # The partial tile first: it initialises the totals, and the loop needs no mask.
    offsets, inside = last_tile(body_ptr, body, BLOCK_V)
    x = tl.load(body_ptr + offsets, mask=inside, other=0.0, eviction_policy=EVICTION).to(tl.float32)
    log2_w = log2_weight(x, point, constant, softmax, HAS_SOFTCAP, EXACT)
    w = tl.where(inside, tl.exp2(log2_w), 0.0)
    first = tl.arange(0, BLOCK_V // VECTOR) == 0
    total = sum_in_thread(w, VECTOR) + tl.where(first, edges, 0.0)
    total_log = tl.zeros([BLOCK_V // 2], tl.float32)
    if HAS_ENTROPY:
        total_log += tl.where(tl.arange(0, BLOCK_V // 2) == 0, edges_log, 0.0)
        total_log = add_products(total_log, w, tl.maximum(log2_w, NEGLIGIBLE))
    for start in range(0, body // BLOCK_V * BLOCK_V, BLOCK_V):
        x = tl.load(body_ptr + start + tl.arange(0, BLOCK_V), eviction_policy=EVICTION).to(tl.float32)
        log2_w = log2_weight(x, point, constant, softmax, HAS_SOFTCAP, EXACT)
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
):
    """(logp, entropy, point, log2_total) of one row; all but the point NaN for an id outside [0, V).

    The first two in nats. Point and total stay apart: a target far below the others must not take their digits.
    """
    target, legal = load_target(row_ptr, target_id, V)
    point = target
    constant = weight_constant(point, 0.0, softmax, HAS_SOFTCAP, False)
    total, total_log = sum_weights(
        row_ptr, V, point, constant, softmax, HAS_SOFTCAP, HAS_ENTROPY, False, BLOCK_V, EVICTION
    )
    log2_point = log2_weight(point, point, constant, softmax, HAS_SOFTCAP, False)
    log2_target = log2_point
    # Below this, about 83 nats above the point, a weight times its log2 is finite. False for NaN too.
    if not (total < 1e36):
        # Half the tile: a rare path must not cost the kernel registers.
        point = maximum_of_row(row_ptr, V, BLOCK_V // 2)
        constant = weight_constant(point, 0.0, softmax, HAS_SOFTCAP, True)
        total, total_log = sum_weights(
            row_ptr, V, point, constant, softmax, HAS_SOFTCAP, HAS_ENTROPY, True, BLOCK_V // 2, EVICTION
        )
        log2_point = log2_weight(point, point, constant, softmax, HAS_SOFTCAP, True)
        log2_target = log2_weight(target, point, constant, softmax, HAS_SOFTCAP, True)
    log2_total = tl.log2(total)
    logp = (log2_target - log2_total) * LN2
    # Rounding can lift the log-prob of a target with probability 1 above 0 by an ulp. NaN stays NaN.
    logp = tl.where(legal, tl.where(logp > 0, 0.0, logp), float("nan"))
    entropy = 0.0
    if HAS_ENTROPY:
        entropy = (log2_total - total_log / total) * LN2
        entropy = tl.where(legal, tl.where(entropy < 0, 0.0, entropy), float("nan"))
    return logp, entropy, point, tl.where(legal, log2_total - log2_point, float("nan"))
