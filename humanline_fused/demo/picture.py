"""The demo's picture: three panels with one scale of reward. A title states a claim only if the results agree."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from humanline_fused.demo.claims import GOOD, Claim, good_rates
from humanline_fused.demo.llama_runs import LlamaRun, LlamaSizes
from humanline_fused.demo.many_policies import Trained
from humanline_fused.looking.pictures import save
from humanline_fused.tiny import bootstrap

GREY, GREEN, BLUE = "#6b7280", "#15803d", "#1d4ed8"
STYLES: dict[str, dict[str, Any]] = {
    "usual": {"color": GREY, "linestyle": (0, (2, 1.5)), "label": "plain DPO, usual β = 0.1"},
    "tuned": {"color": GREY, "linestyle": "-", "label": "plain DPO, tuned"},
    "humanline": {"color": GREEN, "linestyle": "-", "label": "humanline DPO (clamp and sync, β = 0.1)"},
    "online": {"color": BLUE, "linestyle": (0, (6, 2)), "label": "online DPO (new samples at every step)"},
}
"""By meaning of a line, the same in every panel."""


def draw_demo(
    trained: Trained, llamas: Mapping[str, LlamaRun], sizes: LlamaSizes, claims: Mapping[str, Claim], image: Path
) -> None:
    """Draw the three parts.

    Args:
        trained: results of the tiny policies.
        llamas: runs of the Llama by name.
        sizes: settings of those runs.
        claims: as :func:`humanline_fused.demo.claims.claims` returns them.
        image: output file; its extension sets the format.

    Raises:
        OSError: the image cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    figure = Figure(figsize=(13, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    left, middle, right = figure.subplots(1, 3, sharey=True)
    _by_seconds(left, trained, claims)
    _by_learning_rate(middle, trained, claims)
    _of_the_llama(right, llamas, sizes, claims)
    left.set_ylabel("expected held-out reward")
    left.set_ylim(0, 1)
    for axes in (left, middle, right):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelleft=True)
    lines = [Line2D([], [], lw=2.2, **style) for style in STYLES.values()]
    figure.legend(handles=lines, loc="outside lower center", ncols=4, frameon=False, handlelength=3, fontsize=10.5)
    save(figure, image, dpi=120)


def _title(axes: Any, claim: str, neutral: str, *needed: Claim) -> None:
    axes.set_title(claim if all(one.holds for one in needed) else neutral, loc="left", fontsize=11.5, weight="bold")


def _by_seconds(axes: Any, trained: Trained, claims: Mapping[str, Claim]) -> None:
    for name, meaning in (("plain", "tuned"), ("humanline", "humanline"), ("online", "online")):
        arm, style = trained.arms[name], STYLES[meaning]
        means, low, high = _intervals(list(zip(*arm.rewards, strict=True)))
        axes.fill_between(arm.seconds, low, high, color=style["color"], alpha=0.2, lw=0)
        axes.plot(arm.seconds, means, lw=2.2, **style)
        if arm.seconds[0] > 0:  # its samples were drawn before the first step
            axes.plot([0, arm.seconds[0]], [means[0]] * 2, lw=1, color=style["color"])
    axes.text(0.02, 0.37, "offline: all samples first", transform=axes.transAxes, va="top", fontsize=9)
    number = len(trained.arms["plain"].rewards)
    axes.set_xlabel(f"CPU seconds of sampling and training, {number} policies")
    axes.set_xlim(left=0)
    neutral = f"{number} tiny policies, all tuned alike"
    _title(axes, f"{neutral}:\nhumanline above plain, online above both", neutral, claims["gain"], claims["online"])


def _by_learning_rate(axes: Any, trained: Trained, claims: Mapping[str, Claim]) -> None:
    for name, meaning in (("plain", "usual"), ("plain, β tuned", "tuned"), ("humanline", "humanline")):
        means, low, high = _intervals(trained.sweep[name])
        axes.fill_between(trained.rates, low, high, color=STYLES[meaning]["color"], alpha=0.2, lw=0)
        axes.plot(trained.rates, means, lw=2.2, marker="o", ms=4, **STYLES[meaning])
    axes.axhline(GOOD, color="black", lw=0.8, ls=":")
    axes.set_xscale("log")
    axes.set_xlabel("learning rate")
    ours, plain = good_rates(trained, "humanline"), good_rates(trained, "plain, β tuned")
    where = f"at {ours} of {len(trained.rates)} learning rates, tuned plain at {plain}"
    claim = f"Humanline needs less tuning: reward ≥ {GOOD:g}\n{where}"
    _title(axes, claim, "Reward by learning rate", claims["width"])


def _of_the_llama(axes: Any, llamas: Mapping[str, LlamaRun], sizes: LlamaSizes, claims: Mapping[str, Claim]) -> None:
    for name, meaning in (("plain", "usual"), ("plain_tuned", "tuned"), ("humanline", "humanline")):
        run = llamas[name]
        axes.plot(run.steps, run.rewards, lw=2.2, marker="o", ms=4, **STYLES[meaning])
    axes.set_xlabel("optimizer step")
    rates = f"learning rate {sizes.learning_rate:g}; tuned: {sizes.tuned_learning_rate:g}, β = {sizes.tuned_beta:g}"
    axes.text(0.98, 0.02, rates, transform=axes.transAxes, ha="right", fontsize=9)
    above = llamas["plain_tuned"].rewards[-1] > llamas["humanline"].rewards[-1]
    tuned = "tuned, it ends above humanline" if above else "tuning makes up most of it"
    claim = f"One Llama each: plain falls behind at the\nsame settings; {tuned}"
    _title(axes, claim, "One Llama each", claims["same"], claims["match"])


def _intervals(groups: Sequence[Sequence[float]]) -> tuple[list[float], list[float], list[float]]:
    intervals = [bootstrap(group, 2000) for group in groups]
    return [i.mean for i in intervals], [i.low for i in intervals], [i.high for i in intervals]
