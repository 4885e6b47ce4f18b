"""The other processor's products: right within rounding, with bits that depend on the shapes alone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.error_budget import FLOAT32_EPSILON
from tests.other_processor import multiplied, multiplied_and_added, product

GENERATOR = torch.Generator().manual_seed(0)
A, B, C = (torch.randn(*shape, generator=GENERATOR) for shape in ((24, 32), (32, 37), (37,)))


def test_more_rows_give_a_row_other_bits_and_the_same_call_the_same():
    assert torch.equal(product(A, B), product(A, B))
    assert not torch.equal(product(A, B)[:5], product(A[:5], B))


def test_a_product_is_right_within_the_rounding_of_a_sum():
    exact, size = A.double() @ B.double(), A.double().abs() @ B.double().abs()
    assert ((product(A, B) - exact).abs() <= len(B) * FLOAT32_EPSILON * size).all()
    assert product(A[:, :0], B[:0]).eq(0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_added_up_in_float32_and_rounded_once(dtype: torch.dtype):
    a, b, c = (tensor.to(dtype) for tensor in (A, B, C))
    assert torch.equal(multiplied(a, b), product(a.float(), b.float()).to(dtype))
    assert torch.equal(multiplied_and_added(c, a, b), (c.float() + product(a.float(), b.float())).to(dtype))


def test_asked_for_it_is_what_pytorch_multiplies_with():
    code = """
import torch
from tests.other_processor import multiply_as_another_processor_if_asked, product
multiply_as_another_processor_if_asked()
a, b = torch.randn(2, 24, 32), torch.randn(2, 32, 37)
sums, out = torch.ones(24, 37), torch.empty(24, 37)
assert torch.equal(a[0] @ b[0], product(a[0], b[0]))
assert torch.equal(torch.mm(a[0], b[0], out=out), product(a[0], b[0]))
assert torch.equal(sums.clone().addmm_(a[0], b[0], beta=2), 2 + product(a[0], b[0]))
assert torch.equal(torch.addmm(sums, a[0], b[0], alpha=3, out=out), 1 + 3 * product(a[0], b[0]))
assert torch.equal(a @ b, product(a, b))
"""
    environment = os.environ | {"OTHER_PROCESSOR": "1"}
    root = Path(__file__).parents[1]
    ran = subprocess.run([sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
