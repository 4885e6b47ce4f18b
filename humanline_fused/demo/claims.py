"""The demo's claims: each is computed from the results of the run, which may contradict it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from humanline_fused.demo.llama_runs import LlamaRun
from humanline_fused.demo.many_policies import SWEPT, Trained
from humanline_fused.tiny import Interval, bootstrap

GOOD = 0.7
"""A reward half-way between that of the start and 1."""


@dataclass(frozen=True)
class Claim:
    """One claim.

    Attributes:
        text: the claim.
        figure: the numbers of this run.
        holds: whether they agree with the claim.
    """

    text: str
    figure: str
    holds: bool


def gain(trained: Trained, arm: str, over: str) -> Interval:
    """Return the mean difference of final reward between two arms, paired by seed, with its 95 % interval."""
    pairs = zip(trained.arms[arm].final, trained.arms[over].final, strict=True)
    return bootstrap([mine - other for mine, other in pairs])


def good_rates(trained: Trained, name: str) -> int:
    """Return at how many learning rates the mean reward of a swept setting is at least :data:`GOOD`."""
    return sum(_mean(rewards) >= GOOD for rewards in trained.sweep[name])


def claims(trained: Trained, llamas: Mapping[str, LlamaRun]) -> dict[str, Claim]:
    """Return the demo's claims by a short name."""
    over_plain = gain(trained, "humanline", "plain")
    online = [gain(trained, "online", arm) for arm in ("humanline", "plain")]
    good = {setting.name: good_rates(trained, setting.name) for setting in SWEPT}
    plain, humanline, tuned = (llamas[name] for name in ("plain", "humanline", "plain_tuned"))
    before, after, other = (run.rewards[-1] for run in (plain, humanline, tuned))
    return {
        "gain": Claim(
            "Tuned alike, offline humanline ends above offline plain DPO",
            f"{over_plain.signed}, {_wins(trained)} seeds",
            over_plain.low > 0,
        ),
        "online": Claim(
            "Online DPO, with samples of the current policy, ends above both",
            f"{online[0].signed} and {online[1].signed}",
            min(interval.low for interval in online) > 0,
        ),
        "width": Claim(
            f"More learning rates give humanline a reward of {GOOD:g}",
            ", ".join(f"{name} {number}" for name, number in good.items()) + f" of {len(trained.rates)}",
            good["humanline"] > max(number for name, number in good.items() if name != "humanline"),
        ),
        "same": Claim(
            "The Llama: at the same learning rate and β, humanline ends above plain",
            f"{after:.2f} and {before:.2f}",
            after > before,
        ),
        "binds": Claim(
            "The Llama: clamp and sync act on it",
            f"{1 - humanline.unclamped:.0%} of the tokens outside ±0.2, {humanline.syncs} syncs",
            humanline.unclamped < 0.95 and humanline.syncs > 1,
        ),
        "match": Claim(
            "The Llama: plain DPO with another β and learning rate makes up at least half of that",
            f"{other:.2f}",
            other >= (before + after) / 2,
        ),
    }


def _wins(trained: Trained) -> str:
    pairs = list(zip(trained.arms["humanline"].final, trained.arms["plain"].final, strict=True))
    return f"{sum(mine > other for mine, other in pairs)} of {len(pairs)}"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
