"""A small Llama that sorts letters, its data, and one run of the trainer from it.

The start can sort but does not know that ascending order is wanted: two of five demonstrations are right, the others
are in reverse order (the demo's task). The held-out reward is the probability of the right answer, so no sampling noise
enters it.
"""

import contextlib
import copy
import io
import itertools
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback, set_seed

from humanline_fused.demo import task
from humanline_fused.demo.model_answers import sample
from humanline_fused.demo.start_model import fine_tune, make_model, make_tokenizer
from humanline_fused.training import HumanlineConfig, HumanlineTrainer
from humanline_fused.training.objectives.table import find_objective
from humanline_fused.training.run.clock import Clock

SAMPLES = 4
"""Answers per prompt, offline and online."""

SEQUENCES = 32
"""Answers per optimizer step: 16 pairs, or 32 completions."""

MAX_ANSWER = 8
"""Tokens of a sampled answer: more than the longest right answer and its end."""

DEMONSTRATIONS: dict[str, Any] = {"batch_size": 32, "learning_rate": 6e-3}
"""Supervised training of the start; chosen so that it sorts nearly always, in one order or the other."""


@dataclass(frozen=True)
class Size:
    """Sizes of the model and of a run.

    Attributes:
        hidden, layers: of the Llama.
        letters: fewest and most letters of a prompt.
        start_steps: supervised steps; 0 for a start that knows nothing, whose offline answers are written, not drawn.
        steps: optimizer steps of a run.
        demonstrations, asked, heldout: prompts for supervised steps, for the start's answers and online rounds, and for
            the held-out reward; no prompt is in two.
    """

    hidden: int = 64
    layers: int = 2
    letters: tuple[int, int] = (4, 5)
    start_steps: int = 400
    steps: int = 40
    demonstrations: int = 6400
    asked: int = 2400
    heldout: int = 192

    @property
    def groups(self) -> int:
        """Prompts with answers of different reward: each gives one pair, and a run takes every pair once."""
        return self.steps * SEQUENCES // 2


class Seconds(NamedTuple):
    """Processor seconds of a run so far, without evaluation."""

    training: float
    generation: float
    reward: float


@dataclass(frozen=True)
class Trained:
    """What a run gave.

    Attributes:
        steps: optimizer steps after which the run was evaluated.
        rewards: held-out rewards after ``steps``.
        seconds: of the run up to ``steps``.
        unclamped: mean share of tokens within the bounds.
        cpu_seconds: of the whole run, with its start and evaluation.
    """

    steps: tuple[int, ...]
    rewards: tuple[float, ...]
    seconds: tuple[Seconds, ...]
    unclamped: float
    cpu_seconds: float


@dataclass(frozen=True)
class Letters:
    """A start and its data, determined by the size and the seed.

    Attributes:
        model: the start; :meth:`train` does not change it.
        groups: prompts with ``SAMPLES`` answers of the start and their rewards, which are not all equal.
        prompts: prompts for online rounds.
        heldout: prompts of the held-out reward.
        sampling_seconds: processor seconds that drawing and scoring ``groups`` took.
    """

    size: Size
    seed: int
    model: LlamaForCausalLM
    tokenizer: PreTrainedTokenizerFast
    groups: list[dict[str, Any]]
    prompts: list[str]
    heldout: list[str]
    sampling_seconds: float

    @cached_property
    def start(self) -> float:
        """Held-out reward of the start."""
        return self.reward(self.model)

    @torch.no_grad()
    def reward(self, model: torch.nn.Module) -> float:
        """Return the expected reward: the mean probability of the right answer over the held-out prompts."""
        inputs, is_answer = self._right_answers
        was_training = model.training
        logits = model.eval()(**inputs).logits
        model.train(was_training)
        logp = logits[:, :-1].log_softmax(-1).gather(-1, inputs["input_ids"][:, 1:, None])[..., 0]
        return float((logp * is_answer[:, 1:]).sum(-1).exp().mean())

    @cached_property
    def _right_answers(self) -> tuple[dict[str, Tensor], Tensor]:
        texts = [f"{prompt}{task.answer(prompt)}{self.tokenizer.eos_token}" for prompt in self.heldout]
        inputs = self.tokenizer(texts, padding=True, return_tensors="pt", return_token_type_ids=False)
        lengths = torch.tensor([len(task.answer(prompt)) + 1 for prompt in self.heldout])
        width = inputs["input_ids"].shape[1]
        return dict(inputs), torch.arange(width) >= (width - lengths)[:, None]

    def data(self, objective: str, *, online: bool) -> list[dict[str, Any]]:
        """Return the rows of one epoch: prompts for rounds, or groups that give ``SEQUENCES`` answers per step."""
        if online:
            return [{"prompt": prompt} for prompt in self.prompts]
        return self.groups[: self.size.steps * SEQUENCES // (2 if is_paired(objective) else SAMPLES)]

    def train(self, objective: str, settings: Mapping[str, Any], *, evaluate_every: int) -> Trained:
        """Train a copy of the start with :class:`HumanlineTrainer`.

        Args:
            objective: name of the loss.
            settings: fields of :class:`HumanlineConfig`; with ``rollout_every`` the run is online.
            evaluate_every: optimizer steps between two held-out rewards.

        Raises:
            SystemExit: SIGTERM stopped the run.
        """
        began, online = time.process_time(), "rollout_every" in settings
        rounds = {"num_generations": SAMPLES, "max_completion_length": MAX_ANSWER} if online else {}
        with tempfile.TemporaryDirectory() as folder, quiet():
            config = HumanlineConfig(
                output_dir=folder,
                objective=objective,
                max_length=32,
                eval_fraction=0,
                per_device_train_batch_size=SEQUENCES // 2 if is_paired(objective) else SEQUENCES,
                max_steps=self.size.steps,
                logging_steps=self.size.steps,
                logging_first_step=False,
                save_strategy="no",
                use_cpu=True,
                disable_tqdm=True,
                seed=self.seed,
                **rounds,
                **settings,
            )
            trainer = HumanlineTrainer(
                model=copy.deepcopy(self.model),
                args=config,
                processing_class=self.tokenizer,
                train_dataset=self.data(objective, online=online),
                reward_function=rewards_of if online else None,
            )
            trainer.clock = ProcessorClock(trainer.clock.device)
            watch = Watch(self, trainer, evaluate_every)
            trainer.add_callback(watch)
            trainer.train()
        if trainer.termination.stopped:  # by SIGTERM: the run is not whole
            sys.exit(f"stopped at step {trainer.state.global_step} of {self.size.steps}")
        seen = tuple(watch.steps), tuple(watch.rewards), tuple(watch.seconds)
        return Trained(*seen, watch.unclamped, time.process_time() - began)


class ProcessorClock(Clock):
    """The trainer's clock in processor seconds, which other work on the machine changes little."""

    now = staticmethod(time.process_time)


class Watch(TrainerCallback):
    """Evaluates the held-out reward every ``every`` steps and at the end, outside the trainer's clock."""

    def __init__(self, letters: Letters, trainer: HumanlineTrainer, every: int) -> None:
        self.letters, self.trainer, self.every = letters, trainer, every
        self.steps: list[int] = []
        self.rewards: list[float] = []
        self.seconds: list[Seconds] = []
        self.unclamped = 1.0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.every and state.global_step != state.max_steps:
            return
        assert self.trainer.model is not None
        so_far = self.trainer.clock.seconds()
        self.seconds.append(Seconds(*(so_far[f"time/{kind}"] for kind in Seconds._fields)))
        with self.trainer.clock.spent_on("evaluation"):
            self.rewards.append(self.letters.reward(self.trainer.model))
        self.steps.append(state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        self.unclamped = (logs or {}).get("humanline/unclamped", self.unclamped)


def make(size: Size, seed: int) -> Letters:
    """Fine-tune a start and draw its answers.

    Raises:
        RuntimeError: too few prompts got answers of different reward, because the start knows too little.
    """
    set_seed(seed)
    rng = random.Random(seed)
    prompts = task.make_prompts(size.heldout + size.asked + size.demonstrations, rng, size.letters)
    heldout, rest = prompts[: size.heldout], prompts[size.heldout :]
    asked, shown = rest[: size.asked], rest[size.asked :]
    tokenizer = make_tokenizer()
    model = make_model(tokenizer, seed, hidden=size.hidden, layers=size.layers)
    if not size.start_steps:
        return Letters(size, seed, model, tokenizer, _written(asked[: size.groups]), asked, heldout, 0.0)
    with quiet():
        fine_tune(model, tokenizer, shown, rng, steps=size.start_steps, **DEMONSTRATIONS)
    began = time.process_time()
    groups = list(itertools.islice(_drawn(model, tokenizer, asked, seed), size.groups))
    if len(groups) < size.groups:
        raise RuntimeError(
            f"seed {seed}: expected {size.groups} prompts with answers of different reward, got {len(groups)} of "
            f"{len(asked)}"
        )
    return Letters(size, seed, model, tokenizer, groups, asked, heldout, time.process_time() - began)


def _written(prompts: Sequence[str]) -> list[dict[str, Any]]:
    """Return groups of right and reverse answers."""
    groups = []
    for prompt in prompts:
        right = task.answer(prompt)
        groups.append({"prompt": prompt, "completions": [right, right[::-1]] * 2, "rewards": [1.0, 0.0] * 2})
    return groups


def _drawn(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str], seed: int
) -> Iterator[dict[str, Any]]:
    """Yield the prompts whose answers, drawn from the model, differ in reward."""
    for first in range(0, len(prompts), 256):
        batch = prompts[first : first + 256]
        drawn = [sample(model, tokenizer, batch, (seed * 10_000 + first) * SAMPLES + i) for i in range(SAMPLES)]
        for prompt, *answers in zip(batch, *drawn, strict=True):
            rewards = [task.reward(prompt, answer) for answer in answers]
            if len(set(rewards)) > 1:
                yield {"prompt": prompt, "completions": answers, "rewards": rewards}


def is_paired(objective: str) -> bool:
    """Return True for a loss of pairs."""
    return find_objective(objective, None).form.sides == 2


def rewards_of(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float]:
    """Return the rewards of samples, as the trainer asks for them."""
    return [task.reward(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Print nothing until exit: hundreds of runs have one table."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
