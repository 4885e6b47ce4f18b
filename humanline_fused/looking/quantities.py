"""The quantities of the picture of `humanline plot`, and the metrics that they are read from."""

from collections.abc import Mapping
from dataclasses import dataclass

from humanline_fused.looking.curves import Columns, has

REFERENCES = {
    "moving": "a moving reference",
    "frozen": "the frozen initial policy",
    "": "the reference of each step",
}
"""By kind of reference its name in a title; the kind is empty where a run's settings are not known."""

STEEP = 10.0


@dataclass(frozen=True)
class Metric:
    """A logged number: its key in ``metrics.jsonl``, a title that says which direction is good, and its unit.

    A ``share`` is at most 1 and usually near 1, so its axis ends at 1. A title with ``{reference}`` is of a metric
    against the reference of each step: one of a moving and one of a frozen reference are not comparable. One that is
    ``steep`` is exponential in what it measures, so its axis is logarithmic above 1 once it is above :data:`STEEP`.
    """

    key: str
    title: str
    unit: str
    share: bool = False
    steep: bool = False

    @property
    def by_reference(self) -> bool:
        """Whether its values with a moving and with a frozen reference are not comparable."""
        return "{reference}" in self.title

    def titled(self, reference: str) -> str:
        """Return the title for runs with this kind of reference.

        >>> Metric("m", "Margin, against {reference}", "nats").titled("moving")
        'Margin, against a moving reference'
        """
        return self.title.replace("{reference}", REFERENCES[reference])


@dataclass(frozen=True)
class Quantity:
    """A quantity of the picture, with the metrics that may represent it.

    Attributes:
        name: name for messages.
        metrics: metrics in order of preference.
        all: draw every logged metric, instead of the first that a run has.
    """

    name: str
    metrics: tuple[Metric, ...]
    all: bool = False

    def logged(self, runs: Mapping[str, Columns]) -> list[Metric]:
        """Return the metrics to draw; none if no run logged one."""
        found = [metric for metric in self.metrics if any(has(lines, metric.key) for lines in runs.values())]
        return found if self.all else found[:1]


QUANTITIES = (
    Quantity(
        "reward",
        (
            Metric("heldout/reward", "Reward on held-out prompts. Up: better completions", "mean reward"),
            Metric("eval_reward", "Reward in evaluation. Up: better completions", "mean reward"),
            Metric("reward", "Reward of the training samples. Up: better completions", "mean reward"),
        ),
        all=True,
    ),
    Quantity(
        "margin",
        (
            Metric(
                "eval_rewards_initial/margins",
                "Margin of held-out pairs, against the initial policy.\nUp: better separation of chosen and rejected",
                "reward margin (nats × β)",
            ),
            Metric(
                "rewards/margins",
                "Margin in training, against {reference}.\nAbove 0: moves towards the chosen; "
                "small if the reference moves",
                "reward margin (nats × β)",
            ),
        ),
    ),
    Quantity(
        "unclamped share",
        (
            Metric(
                "humanline/unclamped",
                "Tokens within the clamp's bounds around {reference}.\n"
                "Down: the policy moves further from it; 1 without a clamp",
                "share of tokens",
                share=True,
            ),
        ),
    ),
    Quantity(
        "KL to the initial model",
        (
            Metric(
                "eval_kl_initial",
                "Distance k3 from the initial policy, on held-out data.\n"
                "Up: further away, exponentially; 0 at the start",
                "mean over tokens of r − log r − 1,\nr = π_initial / π",
                steep=True,
            ),
        ),
    ),
    Quantity(
        "surplus surprisal",
        (
            Metric(
                "humanline/surplus",
                "Surplus surprisal of the data under {reference}.\nUp: the reference leaves the data",
                "nats per token",
            ),
        ),
    ),
)
