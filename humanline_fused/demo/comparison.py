"""The whole demo: many tiny policies in a second process, a small Llama beside them, a table and a picture."""

import dataclasses
import json
import time
from dataclasses import dataclass, field
from pathlib import Path

from tqdm.auto import tqdm

from humanline_fused.demo.claims import Claim, claims
from humanline_fused.demo.llama_runs import LlamaRun, LlamaSizes, train_llamas
from humanline_fused.demo.many_policies import SWEPT, TUNED, ManyPolicies, Trained, train_policies
from humanline_fused.demo.picture import draw_demo
from humanline_fused.demo.second_process import SecondProcess
from humanline_fused.demo.threads import one_thread
from humanline_fused.looking.pictures import check_ending
from humanline_fused.tiny import Setting, bootstrap

FIRST_SEED = 10_000
"""All settings were tuned with lower seeds."""


@dataclass(frozen=True)
class Demo:
    """Settings of the demo.

    Attributes:
        output_dir: folder for data, models, metrics, results and the picture.
        seed: another number gives other policies, models and data.
        picture: a further file for the picture; its extension sets the format.
        policies: sizes of the parts with tiny policies; None: those of the demo.
        llama: sizes of the part with a Llama.

    Raises:
        ValueError: ``seed`` is negative, or ``picture`` has no picture's extension.
    """

    output_dir: Path
    seed: int = 0
    picture: Path | None = None
    policies: ManyPolicies | None = None
    llama: LlamaSizes = field(default_factory=LlamaSizes)

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 10**6:
            raise ValueError(f"seed: expected an integer from 0 to 999999, got {self.seed}")
        if self.picture:
            check_ending(self.picture)


@dataclass(frozen=True)
class Results:
    """What the demo found; ``results.json`` holds the same.

    Attributes:
        seed: the demo's.
        policies: the tiny policies.
        llama: runs of the Llama by name.
        claims: the demo's claims by name.
        seconds: wall-clock seconds of the whole demo.
    """

    seed: int
    policies: Trained
    llama: dict[str, LlamaRun]
    claims: dict[str, Claim]
    seconds: float


@one_thread()
def run_demo(demo: Demo) -> Results:
    """Run the demo, print the table, and write to ``output_dir``: ``data/``, the models ``start/``, ``plain/``,
    ``humanline/`` and ``plain_tuned/`` (each run with its ``metrics.jsonl``), ``results.json`` and ``comparison.png``.

    Raises:
        OSError: ``output_dir`` or ``picture`` cannot be written.
        RuntimeError: the second process failed, or the Llama's start gave too few pairs.
    """
    began = time.monotonic()
    folder, seed = demo.output_dir, FIRST_SEED + demo.seed
    folder.mkdir(parents=True, exist_ok=True)
    policies = demo.policies or ManyPolicies(first_seed=FIRST_SEED + 16 * demo.seed)
    print(f"{policies.total} tiny policies train in a second process; here a small Llama does.")
    with SecondProcess(train_policies, policies) as second:
        llamas = train_llamas(demo.llama, folder, seed)
        print()
        with tqdm(total=policies.total, desc="tiny policies", unit="policy") as bar:
            trained = second.result(bar.update)

    found = claims(trained, llamas)
    results = Results(demo.seed, trained, llamas, found, round(time.monotonic() - began, 1))
    (folder / "results.json").write_text(json.dumps(dataclasses.asdict(results), indent=1) + "\n", encoding="utf-8")
    image = folder / "comparison.png"
    draw_demo(trained, llamas, demo.llama, found, image)
    if demo.picture:
        draw_demo(trained, llamas, demo.llama, found, demo.picture)
    print(f"\n{table(results, demo.llama)}\n\n{demo.picture or image} shows the curves.")
    print(f"The demo took {results.seconds:.0f} s.")
    return results


def table(results: Results, sizes: LlamaSizes) -> str:
    """Return the results and the claims as text."""
    trained = results.policies
    number = len(trained.arms["plain"].final)
    lines = [
        f"{number} tiny policies of each kind; reward: mean [95 % over seeds]; CPU seconds of all {number} together"
    ]
    for setting in TUNED:
        arm = trained.arms[setting.name]
        lines.append(f"  {words(setting):<58}{bootstrap(arm.final)}  {arm.seconds[-1]:5.1f} s")
    lines += ["", f"reward by learning rate, {len(trained.sweep['plain'][0])} policies each"]
    lines.append(f"  {'':<34}" + "".join(f"{rate:>8.0e}" for rate in trained.rates))
    for setting in SWEPT:
        means = [sum(rewards) / len(rewards) for rewards in trained.sweep[setting.name]]
        lines.append(f"  {words(setting, rate=False):<34}" + "".join(f"{mean:>8.2f}" for mean in means))
    start = results.llama["plain"].rewards[0]
    lines += ["", f"a small Llama, one run each; the start's reward is {start:.2f}"]
    for name, run in results.llama.items():
        used = ", ".join(
            f"{key} {value}" for key, value in sizes.runs[name].items() if key not in ("clamp", "reference")
        )
        end = f"ends at {run.rewards[-1]:.2f}, best {max(run.rewards):.2f}, unclamped {run.unclamped:.2f}"
        lines.append(f"  {name:<12}{end}, {run.syncs} syncs, {run.seconds:.0f} s   {used}")
    lines += ["", "the claims of the picture"]
    lines += [f"  {'holds' if c.holds else 'FAILS':<6} {c.text}: {c.figure}" for c in results.claims.values()]
    return "\n".join([*lines, "", conclusion(results)])


def conclusion(results: Results) -> str:
    """Return what the Llama says about tuning."""
    plain, humanline, tuned = (results.llama[name].rewards[-1] for name in ("plain", "humanline", "plain_tuned"))
    if tuned >= humanline:
        match = "Tuned plain DPO can match humanline there"
    elif results.claims["match"].holds:
        match = "Tuning plain DPO makes up at least half of the difference there"
    else:
        match = "Tuned plain DPO did not match humanline in this run"
    width = "; humanline needs less tuning" if results.claims["width"].holds else ""
    return (
        f"The Llama ends at {humanline:.2f} with humanline, at {plain:.2f} with plain DPO at the same settings,\n"
        f"at {tuned:.2f} with tuned plain DPO. {match}{width}."
    )


def words(setting: Setting, *, rate: bool = True) -> str:
    """Return a setting in words.

    >>> words(Setting("plain", beta=8.0, learning_rate=1e-3))
    'plain (β 8, lr 0.001)'
    """
    parts = [f"β {setting.beta:g}", *([f"lr {setting.learning_rate:g}"] if rate else [])]
    if setting.sync_every:
        parts += [f"±{setting.log_epsilon_R:g}", f"k {setting.sync_every}"]
    return f"{setting.name} ({', '.join(parts)})"
