"""Three sentences of the README on when humanline helps, each with a test of it on the results."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.paper.ablation import BOTH_ONLINE, OBJECTIVES
from benchmarks.paper.intervals import gain

Results = Mapping[str, list[Any]]
"""Rows by name of an experiment."""


@dataclass(frozen=True)
class Sentence:
    """One sentence.

    Attributes:
        experiments: names of those it rests on.
        text: the sentence; ``{equal}`` stands for a link to that experiment.
        holds: True if the rows support it.
    """

    experiments: tuple[str, ...]
    text: Callable[[Results], str]
    holds: Callable[[Results], bool]


def _helped(results: Results) -> str:
    usual, grpo = (gain(results["equal"], "humanline", "plain", objective=o).signed for o in ("dpo", "grpo"))
    noisy = gain(results["beyond"], "humanline", "plain", condition="reward noise 0.2").signed
    return (
        f"It helped DPO: {usual} over tuned plain DPO ({{equal}}), and {noisy} with noisy labels, where 20 % of the "
        f"rewards were inverted ({{beyond}}). GRPO gained {grpo}."
    )


def _helps(results: Results) -> bool:
    clean, noisy = (
        gain(results["beyond"], "humanline", "plain", condition=one) for one in ("usual 0", "reward noise 0.2")
    )
    return gain(results["equal"], "humanline", "plain", objective="dpo").low > 0 and noisy.low > clean.high


def _failed(results: Results) -> str:
    kto = gain(results["equal"], "humanline", "plain", objective="kto").signed
    online = gain(results["ablation"], BOTH_ONLINE, "online", objective="dpo").signed
    return (
        f"It did not help KTO ({kto} against tuned plain KTO) nor online training (DPO {online}, {{ablation}}); "
        "offline with humanline stayed below online for all three losses, and the Llama showed no gain over tuned "
        "plain training ({llama})."
    )


def _fails(results: Results) -> bool:
    equal, fresh, llama = results["equal"], results["ablation"], results["llama"]
    return (
        gain(equal, "humanline", "plain", objective="kto").high < 0
        and all(gain(fresh, BOTH_ONLINE, "online", objective=o).low <= 0 for o in OBJECTIVES)
        and all(gain(equal, "humanline", "online", objective=o).high < 0 for o in OBJECTIVES)
        and all(gain(llama, "humanline", "plain", objective=o).low <= 0 for o in OBJECTIVES)
    )


def _first(results: Results) -> str:
    tiny = gain(results["frozen"], "humanline", "clamp", objective="dpo").signed
    return (
        'Try the clamp alone first (`reference="frozen"`): with DPO no gain of a sync on top of it can be shown '
        f"({tiny}, {{frozen}}); [docs/choosing.md](docs/choosing.md) has the order of the runs."
    )


def _is_first(results: Results) -> bool:
    return all(gain(results[one], "humanline", "clamp", objective="dpo").low <= 0 for one in ("frozen", "llama"))


SENTENCES = (
    Sentence(("equal", "beyond"), _helped, _helps),
    Sentence(("equal", "ablation", "llama"), _failed, _fails),
    Sentence(("frozen", "llama"), _first, _is_first),
)
