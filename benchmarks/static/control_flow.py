"""The loops of a listing of instructions, found by its jumps alone: compilers lay blocks out in any order."""

from collections import defaultdict
from dataclasses import dataclass


@dataclass(frozen=True)
class Flow:
    """Of ``size`` instructions, by position."""

    size: int
    jumps: tuple[tuple[int, int], ...]  # (from, to)
    stops: frozenset[int]  # those that never go on to the next one

    def successors(self) -> list[list[int]]:
        last = self.size - 1
        following = [[i + 1] if i not in self.stops and i < last else [] for i in range(self.size)]
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
    unseen, on_walk = set(range(1, len(successors))), {0}
    walk = [(0, iter(successors[0]))]
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
