"""Hazards that the emulator reports, and the error for PTX that it does not know."""

from dataclasses import dataclass


class UnknownInstruction(Exception):
    """PTX outside the subset that is emulated: the launch did not run."""


@dataclass(frozen=True)
class Finding:
    """One hazard.

    Attributes:
        kind: "out of bounds", "misaligned", "outside the view", "straddles rows", "rows of others", "race",
            "undefined", "barrier" or "shuffle".
        kernel: its name.
        place: line of the PTX, its text, and the source line that it was compiled from.
        detail: addresses, lanes and counts.
    """

    kind: str
    kernel: str
    place: str
    detail: str

    def __str__(self) -> str:
        return f"{self.kind} in {self.kernel}: {self.detail}\n    at {self.place}"


class EmulationError(Exception):
    """Raised at the end of a launch that has findings."""

    def __init__(self, findings: list[Finding]):
        super().__init__("\n".join(map(str, findings)))
        self.findings = findings
