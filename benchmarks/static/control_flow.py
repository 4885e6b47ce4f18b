"""The loops of a listing of instructions, found by its jumps alone: compilers lay blocks out in any order."""

from collections import defaultdict
from dataclasses import dataclass


@dataclass(frozen=True)
class Flow:
    """Of ``size`` instructions, by position.

    Attributes:
        jumps: (from, to).
        stops: those that never go on to the next one.
    """

    size: int
    jumps: tuple[tuple[int, int], ...]
    stops: frozenset[int]

    def successors(self) -> list[list[int]]:
        following = [
            [position + 1] if position not in self.stops and position + 1 < self.size else []
            for position in range(self.size)
        ]
        for origin, target in self.jumps:
            following[origin].append(target)
        return following

    def loops(self) -> list[tuple[int, ...]]:
        """Positions of each loop's body, by the position of its first instruction; an outer loop holds its inner."""
        successors = self.successors()
        predecessors = defaultdict(list)
        for position, following in enumerate(successors):
            for target in following:
                predecessors[target].append(position)
        bodies: dict[int, set[int]] = defaultdict(set)
        for origin, header in back_edges(successors):
            body = bodies[header]
            body.add(header)
            reached = [origin]
            while reached:
                position = reached.pop()
                if position not in body:
                    body.add(position)
                    reached.extend(predecessors[position])
        return [tuple(sorted(bodies[header])) for header in sorted(bodies)]


def back_edges(successors: list[list[int]]) -> list[tuple[int, int]]:
    """Edges to an instruction that the walk from the first one to here has passed."""
    found = []
    unseen = set(range(len(successors)))
    walk = [(0, iter(successors[0]))]
    on_walk = {0}
    unseen.discard(0)
    while walk:
        position, following = walk[-1]
        target = next(following, None)
        if target is None:
            walk.pop()
            on_walk.discard(position)
        elif target in on_walk:
            found.append((position, target))
        elif target in unseen:
            unseen.discard(target)
            on_walk.add(target)
            walk.append((target, iter(successors[target])))
    return found
