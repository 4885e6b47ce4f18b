"""Every case by name, for ``python -m benchmarks`` and for pytest-benchmark."""

from benchmarks.cases import Case
from benchmarks.head import HEAD_CASES
from benchmarks.logits import LOGITS_CASES

CASES: dict[str, Case] = {**LOGITS_CASES, **HEAD_CASES}
