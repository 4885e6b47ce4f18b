"""Rules that every experiment follows: equal budgets, tuning and final seeds apart, paired bootstrap.

Tuning has two rounds. All settings of an arm train with the first seeds; the best of them train with further seeds;
the setting with the highest mean over all its seeds is chosen, and trained with final seeds that no choice has seen.
Every arm has the same number of settings. All runs, those of the tuning too, are rows of the results.
"""

import hashlib
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from benchmarks.paper.run_rows import Run, rows_of
from humanline_fused.tiny import Curves, Demonstrations, Parameters, Policies, Setting, Trainings, fine_tune, train

SEEDS = tuple(range(800, 816))
"""Final seeds, unless a protocol says otherwise."""


@dataclass(frozen=True)
class Protocol:
    """What is fixed before the final seeds are seen. Its :attr:`hash` stands in the results.

    Attributes:
        first, second: seeds of the two rounds of tuning.
        survivors: settings that reach the second round.
        final: seeds of the comparison.
        steps: optimizer steps of a run.
        small: an easier task and smaller policies, for a test of the code.
    """

    first: tuple[int, ...] = (900, 901)
    second: tuple[int, ...] = (902, 903, 904, 905)
    survivors: int = 8
    final: tuple[int, ...] = SEEDS
    steps: int = 200
    small: bool = False

    def __post_init__(self) -> None:
        both = set(self.final) & {*self.first, *self.second}
        if both:
            raise ValueError(f"expected final seeds that no setting is tuned with, got {sorted(both)} in both")

    def with_seeds(self, number: int | None) -> "Protocol":
        """Return a copy with ``number`` final seeds, if it is given."""
        return self if number is None else replace(self, final=tuple(range(self.final[0], self.final[0] + number)))

    def quick(self) -> "Protocol":
        """Return a copy that takes seconds: smaller policies, six seeds, few steps. Its numbers mean nothing."""
        return replace(self, first=(900,), second=(901,), survivors=1, final=SEEDS[:6], steps=4, small=True)


USUAL = Protocol()

Arms = dict[str, list[Setting]]
"""By name of an arm: the settings that it is tuned over."""


def protocol_hash(protocol: Protocol, *more: object) -> str:
    """Return a fingerprint of a protocol and of the arms' settings, for the results' head.

    >>> protocol_hash(Protocol()) == protocol_hash(Protocol())
    True
    """
    return hashlib.sha256(repr((protocol, *more)).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Start:
    """Initial policies by seed, made once for all experiments of a process.

    Attributes:
        policies: architecture and task.
        demonstrations: what they learn from.
    """

    policies: Policies = field(default_factory=Policies)
    demonstrations: Demonstrations = field(default_factory=Demonstrations)

    def small(self) -> "Start":
        """Return the same for lists of three digits and small policies."""
        task = replace(self.policies.task, digits=3, alphabet=4, filler=min(2, self.policies.task.filler))
        learnt = replace(self.demonstrations, until=min(0.15, self.demonstrations.until), learning_rate=3e-3)
        return Start(Policies(task, hidden=16), learnt)

    def of(self, seeds: Sequence[int]) -> Parameters:
        """Return the initial policies of seeds."""
        kept = _STARTS.setdefault(self, {})
        missing = [seed for seed in seeds if seed not in kept]
        if missing:
            made = fine_tune(self.policies, missing, self.demonstrations)
            kept |= {seed: {n: p[i].clone() for n, p in made.items()} for i, seed in enumerate(missing)}
        return {name: torch.stack([kept[seed][name] for seed in seeds]) for name in kept[seeds[0]]}


_STARTS: dict[Start, dict[int, Parameters]] = {}


@dataclass(frozen=True)
class Comparison:
    """Arms under one condition.

    Attributes:
        experiment, condition: names in the rows.
        trainings: what all runs share; the protocol sets the steps.
        protocol: the rules.
        start: the initial policies.
        sources: other writers of samples, by their order in :attr:`Setting.source`.
    """

    experiment: str
    condition: str
    trainings: Trainings
    protocol: Protocol
    start: Start = field(default_factory=Start)
    sources: tuple[Start, ...] = ()

    def compare(self, arms: Arms) -> list[Run]:
        """Tune every arm and train its chosen setting with the final seeds. Return the rows of all runs.

        Raises:
            ValueError: the arms have different numbers of settings.
        """
        sizes = {name: len(settings) for name, settings in arms.items()}
        if len(set(sizes.values())) != 1:
            raise ValueError(f"expected the same number of settings for every arm, got {sizes}")
        rules, found = self.protocol, []
        chosen = {}
        for arm, settings in arms.items():
            rows = self._rows(arm, "tuning", settings, rules.first) if len(settings) > 1 else []
            if rules.second and len(settings) > 1:
                best = self._best(rows, settings, rules.survivors)
                rows += self._rows(arm, "tuning", best, rules.second)
                settings = best
            chosen[arm] = self._best(rows, settings, 1)[0] if rows else settings[0]
            found += rows
        for arm, setting in chosen.items():
            found += self._rows(arm, "final", [setting], rules.final)
        return found

    def sweep(self, arms: Arms, seeds: Sequence[int] | None = None) -> list[Run]:
        """Train every setting of every arm with the final seeds, without a choice."""
        seeds = self.protocol.final if seeds is None else seeds
        return [row for arm, settings in arms.items() for row in self._rows(arm, "final", settings, seeds)]

    def _best(self, rows: Sequence[Run], settings: Sequence[Setting], number: int) -> list[Setting]:
        def mean(setting: Setting) -> float:
            mine = [row.reward for row in rows if _same(row, setting)]
            return sum(mine) / len(mine)

        return sorted(settings, key=mean, reverse=True)[:number]

    def _rows(self, arm: str, phase: str, settings: Sequence[Setting], seeds: Sequence[int]) -> list[Run]:
        curves, seconds = self.curves(settings, seeds, evaluate_every=20 if phase == "final" else self.protocol.steps)
        words = [self.experiment, self.trainings.loss, self.condition, arm]
        print(f"{' '.join(filter(None, words))}: {phase}, {len(settings) * len(seeds)} runs", file=sys.stderr)
        return rows_of(
            curves,
            seconds,
            experiment=self.experiment,
            phase=phase,
            condition=self.condition,
            arm=arm,
            objective=self.trainings.loss,
        )

    def curves(
        self, settings: Sequence[Setting], seeds: Sequence[int], evaluate_every: int = 20
    ) -> tuple[Curves, float]:
        """Train settings with seeds. Return their curves, and CPU seconds per run."""
        policies, (start, *sources) = self.writers(seeds)
        trainings = replace(self.trainings, policies=policies, steps=self.protocol.steps, evaluate_every=evaluate_every)
        began = time.process_time()
        curves = train(trainings, settings, seeds, start, sources)
        return curves, (time.process_time() - began) / (len(settings) * len(seeds))

    def writers(self, seeds: Sequence[int]) -> tuple[Policies, list[Parameters]]:
        """Return the architecture, the initial policies of seeds and the other writers of their samples."""
        starts = [self.start, *self.sources]
        if self.protocol.small:
            starts = [one.small() for one in starts]
        return starts[0].policies, [one.of(seeds) for one in starts]


def _same(row: Run, setting: Setting) -> bool:
    s = setting
    return row.setting == (s.learning_rate, s.beta, s.epsilon, s.log_epsilon_R, s.sync_every, s.gamma_P)
