"""One experiment: the claims of the paper that it tests, its rows, figure and text."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.paper.protocol import USUAL, Protocol, protocol_hash
from benchmarks.results import Facts


@dataclass(frozen=True)
class Claim:
    """One line of the table of docs/paper.md.

    Attributes:
        text: the paper's claim.
        paper: the paper's figure.
        ours: our figure, from the rows.
        verdict: ``holds``, ``holds only …`` or ``does not hold``, from the rows.
        why: the reason, as far as it is known.
    """

    text: str
    paper: str
    ours: Callable[[list], str]
    verdict: Callable[[list], str]
    why: str


@dataclass(frozen=True)
class Experiment:
    """One experiment of ``python -m benchmarks paper``.

    Attributes:
        name: of the command, the CSV and the figure.
        title: heading of its text.
        kind: class of its rows.
        run: makes the rows under a protocol.
        figure: draws rows into a file.
        paragraph: what the rows say, as Markdown without a heading; negative results first.
        claims: lines of the table.
        protocol: the rules it is run under.
        arms: everything else that is fixed beforehand, for the hash.
    """

    name: str
    title: str
    kind: type
    run: Callable[[Protocol], list]
    figure: Callable[[list, Path], None]
    paragraph: Callable[[list], str]
    claims: tuple[Claim, ...] = ()
    protocol: Protocol = USUAL
    arms: object = None

    def facts(self, protocol: Protocol) -> Facts:
        """Return the head of the results: the hash of what was fixed beforehand."""
        return {"protocol": protocol_hash(protocol, self.name, self.arms)}
