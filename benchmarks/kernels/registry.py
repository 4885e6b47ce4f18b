"""Every case by name, for ``python -m benchmarks`` and for pytest-benchmark."""

from benchmarks.kernels.cases import Case
from benchmarks.kernels.head import HEAD_CASES
from benchmarks.kernels.logits import LOGITS_CASES

CASES: dict[str, Case] = {**LOGITS_CASES, **HEAD_CASES}
