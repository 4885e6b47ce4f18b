"""Argument checks. Every error states the expected and the given value.

No check waits for a GPU. Ids, temperatures, ``kl``, ``num_items_in_batch`` and ``cu_seqlens`` out of range are an error
on a CPU; on a GPU the result is NaN. A head's ``rows`` are checked on a CPU alone.
"""

from humanline_fused.validation.scores import (
    check_clamp,
    check_one_launch,
    check_rows,
    check_tokens,
)
from humanline_fused.validation.sequences import check_pairs, check_sequences, nan_if_illegal
from humanline_fused.validation.values import (
    FLOATS,
    check_choice,
    check_ids,
    check_number,
    check_positive,
    check_tensor,
    check_values,
    may_look_at,
)

__all__ = [
    "FLOATS",
    "check_choice",
    "check_clamp",
    "check_ids",
    "check_number",
    "check_one_launch",
    "check_pairs",
    "check_positive",
    "check_rows",
    "check_sequences",
    "check_tensor",
    "check_tokens",
    "check_values",
    "may_look_at",
    "nan_if_illegal",
]
