"""The common beginning of two texts or lists."""

from collections.abc import Sequence
from typing import Any


def common_length(first: Sequence[Any], second: Sequence[Any]) -> int:
    """Return the length of the common beginning of two texts or lists.

    >>> common_length("sky", "skin"), common_length([1, 2], [1, 2, 3])
    (2, 2)
    """
    low, high = 0, min(len(first), len(second))
    if first[:high] == second[:high]:
        return high
    while low < high:  # comparing slices is faster than comparing items in Python
        middle = (low + high + 1) // 2
        low, high = (middle, high) if first[low:middle] == second[low:middle] else (low, middle - 1)
    return low
