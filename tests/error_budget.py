"""The tolerance of all tests: the error against the float64 oracle is at most eager's own error plus rounding.

Rounding is half a unit in the last place of the result's dtype, for the final store of an operation, plus two float32
epsilons of each log-prob in the computation: one for its exponentials and their sum, one for the logarithm and the
difference. Later operations keep this absolute error even if values cancel, so it scales with the log-probs, not with
the result.
"""

import torch
from torch import Tensor

FLOAT32_EPSILON = torch.finfo(torch.float32).eps


def assert_within_budget(
    actual: Tensor, eager: Tensor, oracle: Tensor, what: str, *, log_probs: float = 0.0, unit: float = 1.0
) -> None:
    """Assert that ``actual`` is within the budget, and equal to the oracle where that is not finite.

    Args:
        log_probs: sum of the absolute log-probs that one result is computed from, nats.
        unit: scale of the two terms if the result is a difference: 1 for nats, max |dlogp| for dlogits.
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
    rounding = 2 * FLOAT32_EPSILON * (1 + log_probs) * max(oracle.abs().max().item(), unit)
    excess = (actual - oracle).abs() - (own + store + rounding)
    assert not excess.isnan().any(), f"{what}: NaN where the oracle is finite"
    assert (excess <= 0).all(), f"{what}: {excess.max():.3e} over the budget"


def rounding_of_sum(*terms: float) -> float:
    """Return the largest difference of two float32 sums of the same terms in any order, also after one division.

    Each addition rounds by half an epsilon of a partial sum, and no partial sum exceeds Σ |term|.
    """
    return len(terms) * FLOAT32_EPSILON * sum(map(abs, terms))
