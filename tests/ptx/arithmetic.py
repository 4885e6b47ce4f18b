"""Arithmetic that numpy does not have, or has with other corner cases: bit by bit as the PTX manual defines it."""

from typing import Any

import numpy as np

F2, F4, F8 = np.float16, np.float32, np.float64
U2, U4, U8, I8 = np.uint16, np.uint32, np.uint64, np.int64
SMALLEST_NORMAL = np.float32(2.0**-126)
BELOW_FLOAT32 = np.uint64(0x1FFFFFFF)  # bits of a float64 that float32 lacks
MIDPOINT = np.uint64(0x10000000)

Array = Any  # an array of any dtype, or a scalar of numpy's


def fma(x: Array, y: Array, z: Array) -> Array:
    """x · y + z in float32, rounded once.

    The product is exact in float64, the sum is not: where it lies on a midpoint of float32, its error decides.
    """
    product, addend = np.multiply(x, y, dtype=F8), np.asarray(z, dtype=F8)
    total = product + addend
    at_midpoint = (total.view(U8) & BELOW_FLOAT32) == MIDPOINT
    if at_midpoint.any():
        back = total - product
        error = (product - (total - back)) + (addend - back)
        bits = total.view(I8)
        nudged = np.where((error > 0) == (total > 0), bits + 1, bits - 1)
        total = np.where(at_midpoint & (error != 0) & np.isfinite(total), nudged, bits).view(F8)
    return total.astype(F4)


def flush(x: Array) -> Array:
    """Subnormal float32 to zero of their sign (``.ftz``)."""
    small = np.abs(x) < SMALLEST_NORMAL
    return np.where(small, np.copysign(F4(0), x), x) if small.any() else x


def bf16_bits(x: Array) -> Array:
    """Float32 -> bfloat16, to nearest even; NaN is 0x7FFF."""
    x = np.asarray(x, F4)
    bits = x.view(U4)
    rounded = ((bits + U4(0x7FFF) + ((bits >> U4(16)) & U4(1))) >> U4(16)).astype(U2)
    return np.where(np.isnan(x), U2(0x7FFF), rounded)


def f16_bits(x: Array) -> Array:
    """Float32 -> float16, to nearest even; NaN is 0x7FFF."""
    x = np.asarray(x, F4)
    return np.where(np.isnan(x), U2(0x7FFF), x.astype(F2).view(U2))


def bf16_to_f32(bits: Array) -> Array:
    return (bits.astype(U4) << U4(16)).view(F4)


def pack(low: Array, high: Array) -> Array:
    """Two 16-bit values -> one of 32 bits."""
    return low.astype(U4) | (high.astype(U4) << U4(16))


def divide(x: Array, y: Array) -> Array:
    """Integers, rounded toward zero. A divisor of 0, for which hardware gives any number, gives 0."""
    quotient = x // np.where(y == 0, np.ones_like(y), y)
    if x.dtype.kind == "i":
        quotient = quotient + ((quotient < 0) & (quotient * y != x)).astype(x.dtype)
    return np.where(y == 0, np.zeros_like(quotient), quotient)


def remainder(x: Array, y: Array) -> Array:
    return x - divide(x, y) * y


def shift_left(x: Array, by: Array) -> Array:
    """0 where ``by`` is at least the number of bits."""
    bits = x.dtype.itemsize * 8
    by = np.asarray(by).astype(np.int64)
    return np.where(by < bits, x << np.minimum(by, bits - 1).astype(x.dtype), np.zeros_like(x))


def shift_right(x: Array, by: Array) -> Array:
    """Unsigned: 0 where ``by`` is at least the number of bits. Signed: copies of the sign."""
    bits = x.dtype.itemsize * 8
    by = np.asarray(by).astype(np.int64)
    shifted = x >> np.minimum(by, bits - 1).astype(x.dtype)
    return shifted if x.dtype.kind == "i" else np.where(by < bits, shifted, np.zeros_like(x))


def bit_field(x: Array, position: Array, length: Array) -> Array:
    """``bfe.u32``."""
    position, length = (np.minimum(np.asarray(n, np.int64) & 255, 32).astype(U8) for n in (position, length))
    return ((x.astype(U8) >> position) & ((U8(1) << length) - U8(1))).astype(U4)


def signed_bit_field(x: Array, position: Array, length: Array) -> Array:
    """``bfe.s32``: the field's last bit, or where it ends beyond the number the number's, fills the bits above it."""
    position, length = (np.minimum(np.asarray(n, np.int64) & 255, 32) for n in (position, length))
    above = 64 - np.maximum(length, 1)
    field = np.asarray(x, U4).view(np.int32).astype(I8) >> position << above >> above
    return np.where(length == 0, 0, field).astype(np.int32).view(U4)


def permute_bytes(a: Array, b: Array, selector: int) -> Array:
    """``prmt.b32`` in its default mode."""
    wide = np.asarray(a, U4).astype(U8) | (np.asarray(b, U4).astype(U8) << U8(32))
    out = np.zeros(wide.shape, U4)
    for index in range(4):
        nibble = selector >> (4 * index) & 15
        byte = ((wide >> U8(8 * (nibble & 7))) & U8(255)).astype(U4)
        if nibble & 8:
            byte = np.where(byte & U4(128), U4(255), U4(0))
        out |= byte << U4(8 * index)
    return out


def population(x: Array) -> Array:
    return np.bitwise_count(x).astype(U4)


ROUNDINGS = {"rzi": np.trunc, "rni": np.rint, "rmi": np.floor, "rpi": np.ceil}


def to_integer(x: Array, dtype: Any, rounding: str) -> Array:
    """``cvt`` from a float: saturating, NaN to 0."""
    x, info = ROUNDINGS[rounding](np.asarray(x, F8)), np.iinfo(dtype)
    return np.clip(np.nan_to_num(x, nan=0.0, posinf=info.max, neginf=info.min), info.min, info.max).astype(dtype)
