"""The emulator's arithmetic against exact fractions, torch, and examples of the PTX manual."""

from fractions import Fraction

import numpy as np
import torch

from tests.ptx import arithmetic


def nearest_float32(exact: Fraction) -> np.float32:
    guess = np.float32(float(exact))
    around = [guess, np.nextafter(guess, np.float32(np.inf)), np.nextafter(guess, np.float32(-np.inf))]
    return min(around, key=lambda x: (abs(Fraction(float(x)) - exact), int(np.float32(x).view(np.uint32)) & 1))


def test_fma_rounds_once():
    random = np.random.default_rng(0)
    x, y, z = (random.standard_normal(4000).astype(np.float32) for _ in range(3))
    z[::2] = -(x * y)[::2]  # cancels
    x[::5] = np.float32(1 + 2.0**-12)
    y[::5], z[::5] = x[::5], np.float32(2.0**-60)  # just above a midpoint
    for a, b, c, result in zip(x, y, z, arithmetic.fma(x, y, z), strict=True):
        assert result == nearest_float32(Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c)))


def test_subnormal_numbers_are_flushed_to_zero_of_their_sign():
    x = np.array([2.0**-127, -(2.0**-127), 2.0**-126, -0.0, np.nan], np.float32)
    flushed = arithmetic.flush(x)
    assert flushed[:4].tolist() == [0, 0, 2.0**-126, 0]
    assert np.signbit(flushed[:4]).tolist() == [False, True, False, True]
    assert np.isnan(flushed[4])


def test_conversions_to_16_bits_are_torchs():
    x = torch.randn(10000, generator=torch.Generator().manual_seed(0)) * torch.logspace(-40, 38, 10000)
    x[:4] = torch.tensor([float("inf"), -float("inf"), 0.0, -0.0])
    for dtype, bits in ((torch.bfloat16, arithmetic.bf16_bits), (torch.float16, arithmetic.f16_bits)):
        assert np.array_equal(bits(x.numpy()), x.to(dtype).view(torch.int16).numpy().view(np.uint16))


def test_nan_has_one_pattern_in_16_bits():
    nan = np.array([np.nan, -np.nan], np.float32)
    assert arithmetic.bf16_bits(nan).tolist() == arithmetic.f16_bits(nan).tolist() == [0x7FFF] * 2


def test_integer_division_is_toward_zero():
    x, y = np.array([7, -7, 7, -7], np.int32), np.array([2, 2, -2, -2], np.int32)
    assert arithmetic.divide(x, y).tolist() == [3, -3, -3, 3]
    assert arithmetic.remainder(x, y).tolist() == [1, -1, 1, -1]


def test_a_shift_by_more_than_all_bits_leaves_the_sign_or_nothing():
    x = np.array([-8, 5], np.int32)
    assert arithmetic.shift_right(x, np.uint32(40)).tolist() == [-1, 0]
    assert arithmetic.shift_right(x.view(np.uint32), np.uint32(40)).tolist() == [0, 0]
    assert arithmetic.shift_left(x, np.uint32(40)).tolist() == [0, 0]


def test_bytes_are_permuted_and_their_signs_spread():
    a, b = np.array([0x03020100], np.uint32), np.array([0x07060584], np.uint32)
    assert arithmetic.permute_bytes(a, b, 0x3340)[0] == 0x03038400
    assert arithmetic.permute_bytes(a, b, 0x5410)[0] == 0x05840100
    assert arithmetic.permute_bytes(a, b, 0xC777)[0] == 0xFF070707


def test_a_bit_field_is_cut_out():
    x = np.array([0xABCD1234], np.uint32)
    assert arithmetic.bit_field(x, 8, 8)[0] == 0x12
    assert arithmetic.bit_field(x, 16, 32)[0] == 0xABCD


def test_a_signed_bit_field_has_copies_of_its_last_bit_above():
    x = np.array([0xABCD1234, 32], np.uint32)
    assert arithmetic.signed_bit_field(x, 8, 5).tolist() == [0xFFFFFFF2, 0]  # 0x12 is 10010 in five bits
    assert arithmetic.signed_bit_field(x, 16, 32).tolist() == [0xFFFFABCD, 0]  # ends beyond the number
    assert arithmetic.signed_bit_field(x, 5, 1).tolist() == [0xFFFFFFFF, 0xFFFFFFFF]
    assert arithmetic.signed_bit_field(x, 5, 0).tolist() == [0, 0]


def test_a_float_becomes_the_nearest_integer_that_there_is():
    x = np.array([2.5, -2.5, 3e9, np.nan], np.float32)
    assert arithmetic.to_integer(x, np.int32, "rni").tolist() == [2, -2, 2**31 - 1, 0]
    assert arithmetic.to_integer(x, np.int32, "rzi").tolist() == [2, -2, 2**31 - 1, 0]
    assert arithmetic.to_integer(x, np.int32, "rmi").tolist() == [2, -3, 2**31 - 1, 0]
