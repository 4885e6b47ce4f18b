"""The cases' floors as tables, for the documents."""

from benchmarks.kernels.cases import HEAD_CASES, LOGITS_CASES, MODES
from benchmarks.tables import Line, piped


def markdown(kind: str) -> str:
    """Of the cases on ``"logits"``, in passes, or on hidden states (``"head"``), in products."""
    return piped(_passes() if kind == "logits" else _products())


def _passes() -> list[Line]:
    lines = []
    for case in LOGITS_CASES.values():
        value, (reads, writes) = case.passes.get("nograd"), case.passes["full"]
        lines.append(
            {
                "case": f"`{case.name}`",
                "value": str(sum(value)) if value else "",
                "with its gradient": str(reads + writes),
                "of these reads": str(reads),
                "writes": str(writes),
            }
        )
    return lines


def _products() -> list[Line]:
    headings = dict(zip(MODES, ("value", "frozen head", "trained head"), strict=True))
    return [
        {"case": f"`{case.name}`", **{headings[mode]: str(case.products.get(mode, "")) for mode in MODES}}
        for case in HEAD_CASES.values()
    ]
