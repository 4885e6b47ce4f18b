"""The whole demo: data, a fine-tuned initial model, two training runs, a table and a picture.

Both runs use the same initial model, pairs in the same order, learning rate and number of steps. They differ in the
clamp and the reference (the frozen initial model, or the policy of up to ``sync_every`` updates ago).
"""

import json
import random
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProgressCallback, TrainerCallback, set_seed

from humanline_fused.demo import task
from humanline_fused.demo.model_answers import mean_reward, preference_pairs
from humanline_fused.demo.start_model import fine_tune, make_model, make_tokenizer
from humanline_fused.looking.curves import Points, read_metrics, series
from humanline_fused.looking.pictures import Panel, draw
from humanline_fused.training import HumanlineConfig, HumanlineTrainer

HELDOUT_REWARD = "heldout/reward"
"""Mean reward on held-out prompts, in [0, 1]."""

TRAIN_SECONDS = "heldout/train_seconds"
"""Cumulative seconds of training, without evaluation."""


@dataclass(frozen=True)
class Demo:
    """Settings of the demo.

    Attributes:
        output_dir: folder for data, models, metrics and the picture.
        seed: seed of all random draws.
        demonstrations, pair_prompts, heldout_prompts: number of prompts for each purpose, without overlap.
        start_steps: supervised steps, of 64 demonstrations each.
        steps: optimizer steps of each run, of ``batch_size`` pairs each.
        sync_every: humanline's k. The paper's small models need 12 to 24, and collapse at 1.
        learning_rate: the same for both runs: the lowest that shows both the rise and the decline. At 5e-6, 1e-5, 2e-5,
            5e-5 *plain* reaches .77, .81, .81, .79 at best and ends at .77, .62, .54, .46 (seed 0). So early stopping
            would cost *plain* nothing; therefore the table shows the best reward besides the last. With seed 1 neither
            run declines much, and both end alike (.77, .76).
        evaluate_every: optimizer steps between two evaluations on the held-out prompts.
    """

    output_dir: Path
    seed: int = 0
    demonstrations: int = 20_000
    pair_prompts: int = 5_000
    heldout_prompts: int = 512
    start_steps: int = 300
    steps: int = 160
    batch_size: int = 32
    sync_every: int = 16
    learning_rate: float = 1e-5
    evaluate_every: int = 10

    @property
    def runs(self) -> dict[str, dict[str, Any]]:
        """Settings that differ between the runs, by name of the run."""
        return {
            "plain": {"clamp": False, "reference": "frozen"},
            "humanline": {"clamp": True, "reference": "lookahead", "sync_every": self.sync_every},
        }


class HeldOutReward(TrainerCallback):
    """Logs the reward on held-out prompts before the first step and every ``every`` steps, outside training time."""

    def __init__(
        self, trainer: HumanlineTrainer, tokenizer: PreTrainedTokenizerBase, prompts: list[str], every: int, seed: int
    ) -> None:
        self.trainer, self.tokenizer, self.prompts = trainer, tokenizer, prompts
        self.every, self.seed = every, seed
        self.began = self.evaluating = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.began = time.monotonic()
        self._evaluate()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.every == 0 or state.global_step == state.max_steps:
            self._evaluate()

    def _evaluate(self) -> None:
        paused = time.monotonic()
        model = cast(PreTrainedModel, self.trainer.model)
        reward = mean_reward(model, self.tokenizer, self.prompts, self.seed)
        seconds = paused - self.began - self.evaluating
        self.trainer.log({HELDOUT_REWARD: reward, TRAIN_SECONDS: round(seconds, 3)})
        self.evaluating += time.monotonic() - paused


class Bar(ProgressCallback):
    """transformers' progress bar with the latest reward and loss, instead of one line per log."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        shown = {"held-out reward": HELDOUT_REWARD, "loss": "loss"}
        if self.training_bar is not None and logs:
            self.newest = getattr(self, "newest", {}) | {n: f"{logs[k]:.3f}" for n, k in shown.items() if k in logs}
            self.training_bar.set_postfix(self.newest)


@contextmanager
def one_thread() -> Iterator[None]:
    """Use one thread until exit.

    For these small matrices a second thread saves little time, may wait for a busy core, and changes the last bits.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@one_thread()
def run_demo(demo: Demo) -> dict[str, dict[str, float]]:
    """Run the demo, print the table, and write to ``output_dir``: ``data/``, the models ``start/``, ``plain/`` and
    ``humanline/`` (each run with its ``metrics.jsonl``), ``results.json`` and ``comparison.png``.

    Returns:
        By row of the table: final ``reward`` and ``best`` reward, both in [0, 1], ``loss``, ``unclamped`` (share of
        tokens), ``seconds``.

    Raises:
        OSError: ``output_dir`` cannot be written.
    """
    began = time.monotonic()
    set_seed(demo.seed)
    folder, rng = demo.output_dir, random.Random(demo.seed)
    prompts = task.make_prompts(demo.demonstrations + demo.pair_prompts + demo.heldout_prompts, rng)
    heldout, prompts = prompts[: demo.heldout_prompts], prompts[demo.heldout_prompts :]
    task.write_jsonl(folder / "data" / "heldout.jsonl", ({"prompt": p, "answer": task.answer(p)} for p in heldout))

    tokenizer = make_tokenizer()
    model = make_model(tokenizer, demo.seed)
    fine_tune(model, tokenizer, prompts[demo.pair_prompts :], rng, steps=demo.start_steps)
    model.save_pretrained(folder / "start")
    tokenizer.save_pretrained(folder / "start")
    seconds = time.monotonic() - began
    results = {"start": {"reward": mean_reward(model, tokenizer, heldout, demo.seed), "seconds": seconds}}

    pairs = list(preference_pairs(model, tokenizer, prompts[: demo.pair_prompts], demo.seed))
    task.write_jsonl(folder / "data" / "pairs.jsonl", pairs)
    print(f"{len(pairs)} preference pairs in {folder / 'data' / 'pairs.jsonl'}, the first: {json.dumps(pairs[0])}")

    for name, settings in demo.runs.items():
        results[name] = train(demo, name, settings, tokenizer, heldout)

    (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    labels = {"plain DPO": folder / "plain", f"humanline DPO (k={demo.sync_every})": folder / "humanline"}
    title = f"Sorting letters: one start, the same {len(pairs)} offline pairs, learning rate {demo.learning_rate:g}"
    plot_comparison(labels, folder / "comparison.png", title=title)
    print(f"\n{table(results)}\n\n{folder / 'comparison.png'} shows the curves.")
    print(f"The demo took {time.monotonic() - began:.0f} s.")
    return results


def train(
    demo: Demo, name: str, settings: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, heldout: list[str]
) -> dict[str, float]:
    """Train the initial model on the pairs with ``settings``, and return the run's row of the table."""
    print(f"\n{name}: {', '.join(f'{key}={value}' for key, value in settings.items())}")
    run = demo.output_dir / name
    config = HumanlineConfig(
        output_dir=str(run),
        model=str(demo.output_dir / "start"),
        dataset=str(demo.output_dir / "data" / "pairs.jsonl"),
        objective="dpo",
        max_length=32,
        per_device_train_batch_size=demo.batch_size,
        max_steps=demo.steps,
        learning_rate=demo.learning_rate,
        logging_steps=max(1, demo.evaluate_every // 2),
        save_strategy="no",
        use_cpu=True,
        seed=demo.seed,
        **settings,
    )
    trainer = HumanlineTrainer(args=config)
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(Bar())
    trainer.add_callback(HeldOutReward(trainer, tokenizer, heldout, demo.evaluate_every, demo.seed))
    trainer.train()
    trainer.save_model()

    lines = read_metrics(run)
    last = {key: value for line in lines for key, value in line.items()}
    shares = [line["humanline/unclamped"] for line in lines if "humanline/unclamped" in line]
    return {
        "reward": last[HELDOUT_REWARD],
        "best": max(line[HELDOUT_REWARD] for line in lines if HELDOUT_REWARD in line),
        "loss": last["loss"],
        "unclamped": sum(shares) / len(shares),
        "seconds": last[TRAIN_SECONDS],
    }


def plot_comparison(runs: Mapping[str, Path], image: Path, *, title: str) -> None:
    """Draw the runs of the demo: held-out reward, and log-probs of the chosen answers.

    Args:
        runs: folders of the runs by label.
        image: output file; its extension sets the format.
        title: title of the whole picture.

    Raises:
        ValueError: a run has no log lines.
        OSError: the image cannot be written.

    >>> plot_comparison({"plain": Path("plain")}, Path("comparison.png"), title="Sorting")  # doctest: +SKIP
    """
    lines = {label: read_metrics(folder) for label, folder in runs.items()}

    def curves(x: str, y: str) -> dict[str, Points]:
        return {label: series(of_run, x, y) for label, of_run in lines.items()}

    reward = "mean reward (0 to 1)"
    by_step, by_time = curves("step", HELDOUT_REWARD), curves(TRAIN_SECONDS, HELDOUT_REWARD)
    chosen = curves("step", "logps/chosen")
    panels = [
        Panel("Held-out reward by step", "optimizer step", reward, by_step, (0, 1)),
        Panel("Held-out reward by time", "seconds of training", reward, by_time, (0, 1)),
        Panel("Chosen answers of the training pairs", "optimizer step", "mean log-prob (nats per answer)", chosen),
    ]
    draw([panels], list(runs), image, title=title)


def table(results: Mapping[str, Mapping[str, float]]) -> str:
    """Return the results as aligned text, followed by a description of the columns."""
    columns = {"reward": ".3f", "best": ".3f", "loss": ".3f", "unclamped": ".4f", "seconds": ".1f"}
    rows = [f"{'':<10}" + "".join(f"{name:>12}" for name in columns)]
    for name, values in results.items():
        cells = (format(values[column], form) if column in values else "–" for column, form in columns.items())
        rows.append(f"{name:<10}" + "".join(f"{cell:>12}" for cell in cells))
    return "\n".join(
        [
            *rows,
            "",
            "reward: final share of held-out prompts with a right answer, one sample each; best: maximum over the run.",
            "loss: humanline's is against the policy of a few updates ago, so it stays near ln 2 = 0.693 as it learns.",
            "unclamped: share of completion tokens whose log-ratio is within the bounds (plain has no bounds).",
            "seconds: training time, without evaluation on the held-out prompts.",
        ]
    )
