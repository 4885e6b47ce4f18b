"""The tolerance of all tests: the error against the float64 oracle is at most eager's own error plus rounding.

Rounding is half a unit in the last place of the result's dtype, for the final store of an operation, plus ``PER_NAT``
for each nat of the log-probs in the computation. Later operations keep this absolute error even if values cancel, so it
scales with the log-probs, not with the result.

A GPU's exponentials, logarithms, roots and quotients are approximate. Their bounds are those of the PTX ISA, "Floating
Point Instructions"; Triton's interpreter rounds better.
"""

import torch
from torch import Tensor

FLOAT32_EPSILON = torch.finfo(torch.float32).eps
EX2 = 2.0**-22
"""ex2.approx.ftz.f32: relative error."""
LG2 = 2.0**-22
"""lg2.approx.ftz.f32: relative error; between 1/2 and 2 absolute error, in bits."""
RSQRT = 2.0**-22.9
"""rsqrt.approx.ftz.f32: relative error."""
DIV = 2 * FLOAT32_EPSILON
"""div.full.f32: relative error, 2 units in the last place."""

PER_NAT = EX2 + LG2 + FLOAT32_EPSILON
"""Error of a log-prob: of its exponentials and so of their sum, of the logarithm, and half an epsilon each of the
exponents and of the product with ln 2."""


def assert_within_budget(
    actual: Tensor,
    eager: Tensor,
    oracle: Tensor,
    what: str,
    *,
    log_probs: float = 0.0,
    unit: float = 1.0,
    sums: float = 0.0,
) -> None:
    """Assert that ``actual`` is within the budget, and equal to the oracle where that is not finite.

    Args:
        log_probs: sum of the absolute log-probs that one result is computed from, nats.
        unit: scale of the two terms if the result is a difference: 1 for nats, max |dlogp| for dlogits.
        sums: absolute error by the sums of given numbers, :func:`rounding_of_tree`.
    """
    assert actual.dtype == eager.dtype, f"{what}: {actual.dtype} where eager gives {eager.dtype}"
    assert actual.shape == oracle.shape, f"{what}: {tuple(actual.shape)} where the oracle gives {tuple(oracle.shape)}"
    precision = torch.finfo(actual.dtype).eps if actual.is_floating_point() else 0.0
    actual, eager, oracle = actual.cpu().double(), eager.cpu().double(), oracle.cpu().double()
    finite = oracle.isfinite()
    same = torch.equal(actual[~finite].nan_to_num(nan=0.5), oracle[~finite].nan_to_num(nan=0.5))
    assert same, f"{what}: {actual[~finite].tolist()} where the oracle gives {oracle[~finite].tolist()}"
    if not finite.any():
        return
    actual, eager, oracle = actual[finite], eager[finite], oracle[finite]
    store = 0.5 * precision * oracle.abs()
    own = ((eager - oracle).abs() - store).clamp(min=0).max()
    rounding = PER_NAT * (1 + log_probs) * max(oracle.abs().max().item(), unit) + sums
    excess = (actual - oracle).abs() - (own + store + rounding)
    assert not excess.isnan().any(), f"{what}: NaN where the oracle is finite"
    assert (excess <= 0).all(), f"{what}: {excess.max():.3e} over the budget"


def rounding_of_sum(*terms: float) -> float:
    """Return the largest difference of two float32 sums of the same terms in any order, also after one division.

    Each addition rounds by half an epsilon of a partial sum, and no partial sum exceeds Σ |term|.
    """
    return len(terms) * FLOAT32_EPSILON * sum(map(abs, terms))


def rounding_of_tree(terms: Tensor, roundings: int) -> float:
    """Return the largest error of a float32 sum in which no term is rounded more often, alone or as part of a sum."""
    return roundings * 0.5 * FLOAT32_EPSILON * terms.abs().sum().item()
