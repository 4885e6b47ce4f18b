"""Part three of the demo: a small Llama, fine-tuned from scratch, and three runs of the trainer on the same pairs.

The runs have the same start, pairs, order and number of steps. Plain and humanline also have the same learning rate and
β; the third run is plain DPO with other values of both.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProgressCallback, TrainerCallback, set_seed

from humanline_fused.demo import task
from humanline_fused.demo.model_answers import expected_reward, preference_pairs
from humanline_fused.demo.start_model import make_start
from humanline_fused.looking.curves import read_metrics, series
from humanline_fused.training import HumanlineConfig, HumanlineTrainer

HELDOUT_REWARD = "heldout/reward"
"""Expected reward on held-out prompts, in [0, 1]."""

PLAIN = {"clamp": False, "reference": "frozen"}
CLAMP = {"clamp": True, "log_epsilon_P": -0.2, "log_epsilon_R": 0.2}


@dataclass(frozen=True)
class LlamaSizes:
    """Sizes of the model, its data and its runs.

    Attributes:
        hidden, layers: of the Llama.
        letters: fewest and most letters of a prompt.
        demonstrations, pair_prompts, heldout_prompts: number of prompts for each purpose, without overlap.
        start_steps: supervised steps, of 32 demonstrations each.
        steps: optimizer steps of each run, of ``batch_size`` pairs each.
        sync_every: humanline's k.
        learning_rate, beta: of plain and humanline.
        tuned_learning_rate, tuned_beta: of the third run. All four were chosen on other seeds.
        evaluate_every: optimizer steps between two evaluations on the held-out prompts.
    """

    hidden: int = 64
    layers: int = 2
    letters: tuple[int, int] = (4, 5)
    demonstrations: int = 12_800
    pair_prompts: int = 3_600
    heldout_prompts: int = 256
    start_steps: int = 400
    steps: int = 100
    batch_size: int = 16
    sync_every: int = 25
    learning_rate: float = 3e-4
    beta: float = 0.1
    tuned_learning_rate: float = 1e-4
    tuned_beta: float = 1.0
    evaluate_every: int = 10

    @property
    def runs(self) -> dict[str, dict[str, Any]]:
        """Settings that differ between the runs, by name of the run."""
        same = {"learning_rate": self.learning_rate, "beta": self.beta}
        return {
            "plain": PLAIN | same,
            "humanline": CLAMP | {"reference": "lookahead", "sync_every": self.sync_every} | same,
            "plain_tuned": PLAIN | {"learning_rate": self.tuned_learning_rate, "beta": self.tuned_beta},
        }


@dataclass(frozen=True)
class LlamaRun:
    """What a run gave.

    Attributes:
        steps, rewards: evaluations: optimizer steps before each, and expected held-out reward.
        unclamped: mean share of completion tokens within the bounds.
        syncs: how often the reference was synced.
        seconds: of training, without evaluation.
    """

    steps: list[int]
    rewards: list[float]
    unclamped: float
    syncs: int
    seconds: float


class HeldOutReward(TrainerCallback):
    """Logs the reward on held-out prompts before the first step and every ``every`` steps, outside training time."""

    def __init__(
        self, trainer: HumanlineTrainer, tokenizer: PreTrainedTokenizerBase, prompts: list[str], every: int
    ) -> None:
        self.trainer, self.tokenizer, self.prompts, self.every = trainer, tokenizer, prompts, every

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._evaluate()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.every == 0 or state.global_step == state.max_steps:
            self._evaluate()

    def _evaluate(self) -> None:
        with self.trainer.clock.spent_on("evaluation"):
            model = cast(PreTrainedModel, self.trainer.model)
            reward = expected_reward(model, self.tokenizer, self.prompts)
        self.trainer.log({HELDOUT_REWARD: reward})


class Bar(ProgressCallback):
    """transformers' progress bar with the latest metrics, instead of one line per log."""

    SHOWN: Mapping[str, str] = {"held-out reward": HELDOUT_REWARD, "loss": "loss", "unclamped": "humanline/unclamped"}

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        if self.training_bar is not None and logs:
            newest = {name: f"{logs[key]:.3f}" for name, key in self.SHOWN.items() if key in logs}
            self.newest = getattr(self, "newest", {}) | newest
            self.training_bar.set_postfix(self.newest)


def train_llamas(sizes: LlamaSizes, folder: Path, seed: int) -> dict[str, LlamaRun]:
    """Make the start and its pairs, train all runs, and return them by name.

    Writes ``data/``, the models ``start/`` and one for each run (with its ``metrics.jsonl``) to ``folder``.

    Raises:
        RuntimeError: the start's answers give too few pairs.
        OSError: ``folder`` cannot be written.
    """
    set_seed(seed)
    rng = random.Random(seed)
    count = sizes.demonstrations + sizes.pair_prompts + sizes.heldout_prompts
    prompts = task.make_prompts(count, rng, sizes.letters)
    heldout, prompts = prompts[: sizes.heldout_prompts], prompts[sizes.heldout_prompts :]
    task.write_jsonl(folder / "data" / "heldout.jsonl", ({"prompt": p, "answer": task.answer(p)} for p in heldout))

    made_of: dict[str, Any] = {"hidden": sizes.hidden, "layers": sizes.layers, "steps": sizes.start_steps}
    made_of |= {"batch_size": 32, "learning_rate": 6e-3}
    model, tokenizer = make_start(folder / "start", prompts[sizes.pair_prompts :], rng, seed=seed, **made_of)

    pairs, needed = list(preference_pairs(model, tokenizer, prompts[: sizes.pair_prompts], seed)), sizes.steps
    needed *= sizes.batch_size
    if len(pairs) < needed:
        raise RuntimeError(f"expected {needed} pairs of answers with different rewards, got {len(pairs)}")
    file = folder / "data" / "pairs.jsonl"
    task.write_jsonl(file, pairs[:needed])
    print(f"{needed} preference pairs in {file}, the first: {pairs[0]}")
    return {name: _train(sizes, folder, seed, name, tokenizer, heldout) for name in sizes.runs}


def _train(
    sizes: LlamaSizes, folder: Path, seed: int, name: str, tokenizer: PreTrainedTokenizerBase, heldout: list[str]
) -> LlamaRun:
    settings = sizes.runs[name]
    print(f"\n{name}: {', '.join(f'{key}={value}' for key, value in settings.items())}")
    config = HumanlineConfig(
        output_dir=str(folder / name),
        model=str(folder / "start"),
        dataset=str(folder / "data" / "pairs.jsonl"),
        objective="dpo",
        eval_fraction=0,
        max_length=32,
        per_device_train_batch_size=sizes.batch_size,
        max_steps=sizes.steps,
        logging_steps=max(1, sizes.evaluate_every // 2),
        save_strategy="no",
        use_cpu=True,
        seed=seed,
        **settings,
    )
    trainer = HumanlineTrainer(args=config)
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(Bar())
    trainer.add_callback(HeldOutReward(trainer, tokenizer, heldout, sizes.evaluate_every))
    trainer.train()
    trainer.save_model()

    lines = read_metrics(folder / name)
    steps, rewards = series(lines, "step", HELDOUT_REWARD)
    _, shares = series(lines, "step", "humanline/unclamped")
    return LlamaRun(
        steps=[int(step) for step in steps],
        rewards=rewards,
        unclamped=sum(shares) / len(shares),
        syncs=-(-sizes.steps // settings["sync_every"]) if "sync_every" in settings else 0,
        seconds=series(lines, "step", "time/training")[1][-1],
    )
