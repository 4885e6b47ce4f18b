"""One row of the report: the cost of one whole launch of one compiled kernel."""

from dataclasses import dataclass


@dataclass(frozen=True)
class LaunchCost:
    """One launch on bfloat16 logits, each row of which counts."""

    launch: str
    arch: str
    V: int
    instructions_per_element: float
    passes_read: float  # of the logits, the reference's and dlogits; what the cache holds is read too
    passes_written: float
    others: float  # passes that everything else would make, read and written: a few numbers per row
