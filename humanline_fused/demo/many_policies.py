"""Parts one and two of the demo: many tiny policies, by seconds of computing and by learning rate."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from humanline_fused.tiny import Curves, Demonstrations, Policies, Setting, Trainings, fine_tune, train

HUMANLINE = {"log_epsilon_P": -0.5, "log_epsilon_R": 0.5, "sync_every": 100}

TUNED = (
    Setting("plain", beta=4.0, learning_rate=1e-3),
    Setting("humanline", beta=0.1, learning_rate=3e-3, **HUMANLINE),
    Setting("online", beta=0.3, learning_rate=3e-3, resample_every=1),
)
"""Each the best of 48 settings on other seeds (``python -m benchmarks paper equal``)."""

SWEPT = (
    Setting("plain", beta=0.1),
    Setting("plain, β tuned", beta=4.0),
    Setting("humanline", beta=0.1, **HUMANLINE),
)
"""Settings that train at every learning rate: the usual β, plain's tuned one, and humanline at the usual β."""

Report = Callable[[int], None]
"""Receives the number of policies that were trained since the last call."""


@dataclass(frozen=True)
class ManyPolicies:
    """Sizes of both parts.

    Attributes:
        first_seed: seeds are consecutive from here.
        seeds: policies of each setting of :data:`TUNED`.
        swept_seeds: policies of each setting of :data:`SWEPT` and learning rate; the first of the same seeds.
        steps: optimizer steps, each of 16 prompts with 4 samples.
        rates: learning rates of :data:`SWEPT`.
        policies, demonstrations: architecture, and what the initial policies learn from.
    """

    first_seed: int
    seeds: int = 16
    swept_seeds: int = 6
    steps: int = 200
    rates: Sequence[float] = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
    policies: Policies = field(default_factory=Policies)
    demonstrations: Demonstrations = field(default_factory=Demonstrations)

    @property
    def total(self) -> int:
        """Policies to train, the initial ones included."""
        return self.seeds * (1 + len(TUNED)) + self.swept_seeds * len(SWEPT) * len(self.rates)


@dataclass(frozen=True)
class Arm:
    """Policies of one setting of :data:`TUNED`.

    Attributes:
        seconds: CPU seconds of sampling and training of all seeds together before each evaluation. The samples of
            offline training are drawn before the first step, so it begins there with the seconds of all its samples.
        rewards: expected held-out reward of each seed at each evaluation, [S, E].
    """

    seconds: list[float]
    rewards: list[list[float]]

    @property
    def final(self) -> list[float]:
        """Reward of each seed after the last step."""
        return [of_seed[-1] for of_seed in self.rewards]


@dataclass(frozen=True)
class Trained:
    """What both parts gave.

    Attributes:
        arms: by name of :data:`TUNED`.
        rates: the learning rates.
        sweep: by name of :data:`SWEPT`: final expected held-out reward of each seed at each learning rate, [rates, S].
    """

    arms: dict[str, Arm]
    rates: list[float]
    sweep: dict[str, list[list[float]]]


def train_policies(sizes: ManyPolicies, report: Report) -> Trained:
    """Train all policies in this process.

    >>> from humanline_fused.tiny import Sorting
    >>> quick = Policies(Sorting(digits=2, alphabet=4), hidden=8)
    >>> sizes = ManyPolicies(0, 2, 1, 2, (1e-3,), quick, Demonstrations(until=0.2))
    >>> reports: list[int] = []
    >>> trained = train_policies(sizes, reports.append)
    >>> len(trained.arms["online"].final), len(trained.sweep["humanline"][0]), sum(reports) == sizes.total
    (2, 1, True)
    """
    seeds = range(sizes.first_seed, sizes.first_seed + sizes.seeds)
    start = fine_tune(sizes.policies, seeds, sizes.demonstrations)
    report(sizes.seeds)
    trainings = Trainings("dpo", sizes.policies, steps=sizes.steps, evaluate_every=max(1, sizes.steps // 10))
    arms = {}
    for setting in TUNED:
        arms[setting.name] = _arm(train(trainings, [setting], seeds, start), online=setting.resample_every is not None)
        report(sizes.seeds)

    trainings = replace(trainings, evaluate_every=sizes.steps)
    few, start = seeds[: sizes.swept_seeds], {name: value[: sizes.swept_seeds] for name, value in start.items()}
    sweep = {}
    for setting in SWEPT:
        settings = [replace(setting, learning_rate=rate) for rate in sizes.rates]
        curves = train(trainings, settings, few, start)
        sweep[setting.name] = curves.reward[:, :, -1].tolist()
        report(sizes.swept_seeds * len(sizes.rates))
    return Trained(arms, list(sizes.rates), sweep)


def _arm(curves: Curves, *, online: bool) -> Arm:
    sampling, training = curves.sampling_seconds[0], curves.training_seconds[0]
    seconds = len(curves.seeds) * (training + (sampling if online else sampling[-1]))
    return Arm(seconds.tolist(), curves.reward[0].tolist())
