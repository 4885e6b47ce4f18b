"""The loops of a listing of instructions, found by its jumps alone: compilers lay blocks out in any order."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import networkx


@dataclass(frozen=True)
class Flow:
    """Of ``size`` instructions, by position."""

    size: int
    jumps: tuple[tuple[int, int], ...]  # (from, to)
    stops: frozenset[int]  # those that never go on to the next one

    def loops(self) -> list[tuple[int, ...]]:
        """Positions of each loop's body, by the position of its first instruction; an outer loop holds its inner."""
        falls = [(i, i + 1) for i in range(self.size - 1) if i not in self.stops]
        graph = networkx.DiGraph([*falls, *self.jumps])
        bodies: dict[int, set[int]] = defaultdict(set)
        for origin, header in back_edges(graph):
            entered_once = graph.copy()
            entered_once.remove_edges_from(graph.in_edges(header))
            bodies[header] |= {origin, *networkx.ancestors(entered_once, origin)}
        return [tuple(sorted(bodies[header])) for header in sorted(bodies)]


def back_edges(graph: networkx.DiGraph) -> Iterator[tuple[int, int]]:
    """Edges to an instruction that the walk from the first one to here has passed."""
    on_walk: set[int] = set()
    for origin, target, kind in networkx.dfs_labeled_edges(graph, 0):
        if kind == "forward":
            on_walk.add(target)
        elif kind == "reverse":
            on_walk.discard(target)
        elif target in on_walk:
            yield origin, target
