"""Line info of an assembly text -> the loop of the source that an instruction belongs to.

LLVM writes each instruction's location, and the calls that it was inlined through, as a ``.loc`` directive: the calls
are in a comment (``// file:line:column @[ file:line:column ]``), or in the directive (``inlined_at``).
"""

import ast
import functools
import re
from dataclasses import dataclass
from itertools import count
from pathlib import Path

LOC = re.compile(r"\s*\.loc\s+(\d+)\s+(\d+)\s+(\d+)(.*)")
INLINED_AT = re.compile(r"inlined_at (\d+) (\d+) (\d+)")
COMMENT = re.compile(r"([^\s:\[]+\.py):(\d+)")
FILE = re.compile(r'^\s*\.file\s+(\d+)\s+(?:"([^"]*)"\s+)?"([^"]+)"', re.MULTILINE)


@dataclass(frozen=True)
class Location:
    """A line of a file, and the lines that call it, innermost first."""

    frames: tuple[tuple[str, int], ...]


NOWHERE = Location(())


@dataclass(frozen=True)
class SourceLoop:
    """A ``for`` or ``while`` statement of a jitted function."""

    function: str
    lines: tuple[tuple[str, int], ...]  # its own first line, after those of the calls that lead to it, outermost first

    @property
    def order(self) -> tuple[int, ...]:
        """Sorts the loops of one kernel as its source is read."""
        return tuple(line for _, line in self.lines)


@functools.cache
def loop_statements(path: str) -> list[tuple[str, int, int]]:
    """(function, first line, last line) of every loop that runs: ``static_range`` is unrolled, so it is none."""
    return [
        (function.name, loop.lineno, loop.end_lineno or loop.lineno)
        for function in ast.walk(ast.parse(Path(path).read_text()))
        if isinstance(function, ast.FunctionDef)
        for loop in ast.walk(function)
        if isinstance(loop, ast.While)
        or (isinstance(loop, ast.For) and not ast.unparse(loop.iter).startswith("tl.static_range"))
    ]


def source_loop(location: Location) -> SourceLoop | None:
    """The innermost loop statement that the location is in, itself or through the calls that led to it."""
    for depth, (path, line) in enumerate(location.frames):
        around = [loop for loop in loop_statements(path) if loop[1] <= line <= loop[2]]
        if around:
            function, first, _ = min(around, key=lambda loop: loop[2] - loop[1])
            return SourceLoop(function, (*location.frames[:depth:-1], (path, first)))
    return None


def locations(assembly: str) -> list[Location]:
    """Of every line: that of the ``.loc`` directive which it follows, or is."""
    files = {number: str(Path(folder, name)) for number, folder, name in FILE.findall(assembly)}
    named = {Path(path).name: path for path in files.values()}
    latest: dict[tuple[str, ...], Location] = {}
    location, found = NOWHERE, []
    in_line = False
    for text in assembly.splitlines():
        if text.endswith(("begin inline asm", "end inline asm")):
            in_line = "begin" in text
        directive = LOC.match(text)
        # LLVM counts the lines of an inline asm as if they were the source's.
        if directive and not in_line:
            file, line, column, rest = directive.groups()
            if caller := INLINED_AT.search(rest):
                calls = latest[caller.groups()].frames
            else:
                calls = tuple((named[name], int(line)) for name, line in COMMENT.findall(rest)[1:])
            location = latest[file, line, column] = Location(((files[file], int(line)), *calls))
        found.append(location)
    return found


def number_locations(llir: str) -> str:
    """LLVM IR whose every location has a column of its own.

    PTX names the call that code was inlined through by file, line and column alone, the same for every path to it.
    """
    columns = count(1)
    return re.sub(
        r"(!DILocation\(line: \d+)(?:, column: \d+)?", lambda location: f"{location[1]}, column: {next(columns)}", llir
    )
