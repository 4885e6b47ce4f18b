"""``python -m tests.faults``: kills, damaged files and calls with random arguments, counted.

Every fault has a number, its seed, and is the same each time. The counts are written to ``benchmarks/results/faults/``,
a file for each kind, after every few faults; a command that is interrupted goes on where it was, unless the code has
changed since.
"""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks import results
from benchmarks.machine import environment
from tests.faults.calls import Calls
from tests.faults.damage import Damages
from tests.faults.forked_runs import write_inputs
from tests.faults.kills import Kills
from tests.faults.outcome import RIGHT, Count, Fault, Outcome, counted

FOLDER = results.RESULTS / "faults"
KINDS: dict[str, Callable[[Path], Callable[[int], Fault]]] = {"call": Calls, "kill": Kills, "damage": Damages}
OPTIONS = {"call": "calls", "kill": "kills", "damage": "damage"}
EVERY = 25
"""Faults between two writes of the counts."""


def workplace() -> Path:
    """Return a new folder, in memory where there is one: a disk's waits would take most of the time."""
    memory = Path("/dev/shm")
    return Path(tempfile.mkdtemp(prefix="faults-", dir=memory if memory.is_dir() else None))


class Tally:
    """Counts of the faults of one kind so far, on the disk.

    Args:
        kind: the kind.
        folder: folder of the file.
        facts: the file's head. A file of other code or another first seed is begun anew.
    """

    def __init__(self, kind: str, folder: Path, facts: results.Facts) -> None:
        self.kind, self.file, self.facts = kind, folder / f"{kind}.csv", facts
        known = results.agrees(self.file, facts, ("source", "first seed"))
        self.counts = results.read(self.file, Count)[1] if known else []

    @property
    def tried(self) -> int:
        return sum(count.tried for count in self.counts)

    def add(self, faults: list[Fault]) -> None:
        """Add the outcomes of faults, and write."""
        everything = [(fault.what, fault.outcome) for fault in faults]
        for count in self.counts:
            everything += [(count.what, one) for one in Outcome for _ in range(getattr(count, one.value))]
        self.counts = counted(self.kind, everything)
        results.write(self.file, Count, self.facts, self.counts)

    def line(self) -> str:
        """Return the counts of all classes together as a row of a table."""
        numbers = [sum(getattr(count, outcome.value) for count in self.counts) for outcome in Outcome]
        return f"{self.kind:8}{self.tried:8}" + "".join(f"{number:11}" for number in numbers)

    @property
    def right(self) -> bool:
        return all(not getattr(count, one.value) for count in self.counts for one in Outcome if one not in RIGHT)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__.splitlines()[0])
    for kind, option in OPTIONS.items():
        parser.add_argument(f"--{option}", dest=kind, type=int, default=0, metavar="N", help="How many. Default: none.")
    parser.add_argument(
        "--seed", type=int, default=0, help="Seed of the first fault of each kind. Default: %(default)s"
    )
    parser.add_argument("--output", type=Path, default=FOLDER, help="Folder of the counts. Default: %(default)s")
    options = vars(parser.parse_args())
    torch.set_num_threads(1)
    facts = environment(torch.device("cpu")) | {"command": "python -m tests.faults " + " ".join(sys.argv[1:])}
    facts |= {"first seed": str(options["seed"])}
    tallies = [Tally(kind, options["output"], facts) for kind in KINDS if options[kind]]
    here = workplace()
    try:
        write_inputs(here)
        for tally in tallies:
            fault, wanted = KINDS[tally.kind](here), options[tally.kind]
            while tally.tried < wanted:
                first = options["seed"] + tally.tried
                done = [fault(seed) for seed in range(first, first + min(EVERY, wanted - tally.tried))]
                print("".join(f"{one}\n" for one in done if not one.right), end="")
                tally.add(done)
                print(f"{tally.kind} {tally.tried} of {wanted}", flush=True)
    finally:
        shutil.rmtree(here, ignore_errors=True)
    print(f"{'fault':8}{'tried':>8}" + "".join(f"{outcome:>11}" for outcome in Outcome))
    print("\n".join(tally.line() for tally in tallies))
    return 0 if all(tally.right for tally in tallies) else 1


if __name__ == "__main__":
    sys.exit(main())
