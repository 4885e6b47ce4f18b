"""``python -m benchmarks paper gpu``: offline against offline + humanline against online, on a model of real size.

One command for one GPU. A problem is one of generated arithmetic, or a row of ``--dataset`` with GSM8K's columns; the
reward is exact. The model is ``--model``, or, where nothing can be downloaded, a Llama of 30 million parameters made
from a config and taught worked solutions, two of five of them right. Offline runs take the start's own samples; groups
of equal reward teach nothing, so offline runs repeat the others.

The parts are: the start, each seed's offline samples, each run. What is done is kept in ``--folder``, and the same
command goes on from there; a run goes on from its newest checkpoint. Results: ``benchmarks/results/paper/gpu.csv``.
Without a GPU only ``--tiny`` runs, to see the command run to its end; it writes no results.
"""

import argparse
import itertools
import json
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.machine import environment
from benchmarks.paper.problems import make_problems, reward, rewards_of
from benchmarks.paper.taught import first_step, plain_prompt, taught_model
from benchmarks.results import RESULTS, Facts, agrees, cells, read, write
from benchmarks.tables import columns
from humanline_fused.training import HumanlineConfig, HumanlineTrainer
from humanline_fused.training.data.reading.sources import read_records
from humanline_fused.training.online.generation import Sampling, end_tokens, sample

ARMS: dict[str, dict[str, Any]] = {
    "plain": {"clamp": False, "reference": "frozen"},
    "humanline": {"clamp": True, "reference": "lookahead", "sync_every": 16},
    "online": {"clamp": False, "reference": "copy", "sync_every": 1, "rollout_every": 1},
}
"""Bounds ±1.5 and k = 16, as the paper's; online, the reference is the policy of the step before."""

SAME = ("machine", "torch", "source", "model", "plan")
"""Facts that a file shares with the rows that are added to it."""


@dataclass(frozen=True)
class Plan:
    """Sizes, the same for every arm; the paper's where they are known (Qwen2.5-1.5B on MATH).

    Attributes:
        steps: optimizer steps of a run.
        prompts: problems of a step, with ``samples`` answers each.
        heldout: problems of the held-out reward, with one answer each at temperature 1.
        max_answer: tokens of an answer.
        rates: learning rates; every arm is trained with each, and nothing else is tuned.
        hidden, layers, taught: width, depth and supervised steps of the model made from a config.
        written: offline answers are written, not drawn, because the model knows nothing.
    """

    steps: int = 200
    prompts: int = 32
    samples: int = 8
    heldout: int = 512
    max_answer: int = 256
    rates: tuple[float, ...] = (1e-6, 4e-6)
    hidden: int = 512
    layers: int = 8
    taught: int = 2000
    written: bool = False

    @property
    def sequences(self) -> int:
        """Answers of an optimizer step."""
        return self.prompts * self.samples


PLAN = Plan()
TINY = Plan(
    steps=2,
    prompts=4,
    samples=2,
    heldout=8,
    max_answer=8,
    rates=(1e-3,),
    hidden=16,
    layers=1,
    taught=2,
    written=True,
)


@dataclass(frozen=True)
class Trained:
    """One run.

    Attributes:
        arm, seed, learning_rate: what was trained.
        start, reward: held-out reward before and after; sampled, so its standard error is that of ``heldout`` answers.
        heldout: problems of the held-out reward.
        steps: optimizer steps.
        training, generation, labelling: seconds.
        peak_mib: peak memory of the GPU in MiB; None on a CPU.
    """

    arm: str
    seed: int
    learning_rate: float
    start: float
    reward: float
    heldout: int
    steps: int
    training: float
    generation: float
    labelling: float
    peak_mib: float | None


@dataclass
class Check:
    """One call of the command."""

    plan: Plan
    model: str | None
    dataset: str | None
    folder: Path
    device: torch.device

    def start(self) -> Path:
        """Return the folder of the initial policy; it is made if it is missing."""
        folder = self.folder / "start"
        if not folder.is_dir():
            plan = self.plan
            made = (
                self._load(self.model)
                if self.model
                else taught_model(plan.hidden, plan.layers, plan.taught, self.device)
            )
            model, tokenizer = made
            _whole(folder, lambda to: (model.save_pretrained(to), tokenizer.save_pretrained(to)))
        return folder

    def problems(self, seed: int) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
        """Return held-out problems, and those to train on, without repetition."""
        plan = self.plan
        count = plan.heldout + plan.steps * plan.prompts
        if self.dataset is None:
            found = make_problems(count, random.Random(seed))
        else:
            found = [record for _, record in read_records(self.dataset, "train")]
            lacking = {"question", "answer"} - set(found[0])
            if lacking:
                raise ValueError(f"{self.dataset}: expected columns question and answer, got {sorted(found[0])}")
            random.Random(seed).shuffle(found)
            if len(found) < plan.heldout + plan.prompts:
                raise ValueError(
                    f"{self.dataset}: expected at least {plan.heldout + plan.prompts} rows, got {len(found)}"
                )
        return found[: plan.heldout], found[plan.heldout :][: plan.steps * plan.prompts]

    def samples(self, seed: int) -> Path:
        """Return the file of the start's samples, with their rewards; it is made if it is missing."""
        file = self.folder / f"samples-{seed}.jsonl"
        if not file.is_file():
            model, tokenizer = self._load(str(self.start()))
            problems = self.problems(seed)[1]
            if self.plan.written:
                answers = [[one["answer"], first_step(one["answer"])] for one in problems]
            else:
                answers = self._answers(model, tokenizer, problems, seed, self.plan.samples)
            rows = [
                {
                    "prompt": prompt_of(one["question"], tokenizer),
                    "completions": [as_completion(text, tokenizer) for text in texts],
                    "rewards": [reward(text, one["answer"]) for text in texts],
                }
                for one, texts in zip(problems, answers, strict=True)
            ]
            text = "".join(json.dumps(row) + "\n" for row in rows)
            _whole(file, lambda to: to.write_text(text, encoding="utf-8"))
        return file

    def train(self, arm: str, seed: int, learning_rate: float) -> Trained:
        """Train once, from the newest checkpoint if there is one."""
        plan, settings = self.plan, ARMS[arm]
        online = "rollout_every" in settings
        start, (heldout, problems) = self.start(), self.problems(seed)
        tokenizer = AutoTokenizer.from_pretrained(start)
        answers = {"num_generations": plan.samples, "max_completion_length": plan.max_answer, "rollout_batch_size": 256}
        rounds: dict[str, Any] = answers if online else {}
        if online:
            data: Any = [{"prompt": prompt_of(p["question"], tokenizer), "answer": p["answer"]} for p in problems]
        else:
            data = str(self.samples(seed))
        micro = min(plan.sequences, 32)
        config = HumanlineConfig(
            output_dir=str(self.folder / f"{arm}-{seed}-{learning_rate:g}"),
            model=str(start),
            objective="grpo",
            eval_fraction=0,
            max_length=1024 if self.device.type == "cuda" else 256,
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=plan.sequences // micro,
            max_steps=plan.steps,
            learning_rate=learning_rate,
            save_steps=max(1, plan.steps // 8),
            save_total_limit=1,
            use_cpu=self.device.type == "cpu",
            seed=seed,
            **rounds,
            **settings,
        )
        trainer = HumanlineTrainer(args=config, train_dataset=data, reward_function=rewards_of if online else None)
        assert isinstance(trainer.model, PreTrainedModel)
        before = self._reward(trainer.model, tokenizer, heldout, seed)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        trainer.train(resume_from_checkpoint="auto")
        peak = torch.cuda.max_memory_allocated() / 2**20 if self.device.type == "cuda" else None
        seconds = trainer.clock.seconds()
        after = self._reward(trainer.model, tokenizer, heldout, seed)
        return Trained(
            arm=arm,
            seed=seed,
            learning_rate=learning_rate,
            start=before,
            reward=after,
            heldout=len(heldout),
            steps=plan.steps,
            training=seconds["time/training"],
            generation=seconds["time/generation"],
            labelling=seconds["time/reward"],
            peak_mib=peak,
        )

    def _load(self, name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
        model.to(self.device)  # pyright: ignore[reportArgumentType]
        return model, AutoTokenizer.from_pretrained(name)

    def _answers(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        problems: Sequence[dict[str, str]],
        seed: int,
        number: int,
    ) -> list[list[str]]:
        """Return ``number`` answers to each problem, drawn from the model at temperature 1."""
        ids = [prompt_ids(one["question"], tokenizer) for one in problems]
        pad = tokenizer.pad_token_id
        sampling = Sampling(
            num_generations=number,
            max_completion_length=self.plan.max_answer,
            max_length=1024,
            temperature=1.0,
            top_p=1.0,
            batch_size=max(1, 256 // number),
            pad_token_id=0 if pad is None else int(pad),  # pyright: ignore[reportArgumentType]
        )
        ends = end_tokens(model.generation_config, tokenizer)
        drawn = sample(model, ids, sampling, ends, seed)
        return [[str(tokenizer.decode(one.tolist(), skip_special_tokens=True)) for one in group] for group in drawn]

    def _reward(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, problems: Sequence[dict[str, str]], seed: int
    ) -> float:
        answers = self._answers(model, tokenizer, problems, seed, 1)
        return fmean(reward(texts[0], one["answer"]) for one, texts in zip(problems, answers, strict=True))


def prompt_of(question: str, tokenizer: PreTrainedTokenizerBase) -> Any:
    """Return a problem as the trainer reads it: messages for a model with a chat template, else text."""
    if tokenizer.chat_template is None:
        return plain_prompt(question)
    return [{"role": "user", "content": f"{question}\nThink step by step, and end with #### and the number."}]


def as_completion(text: str, tokenizer: PreTrainedTokenizerBase) -> Any:
    """Return an answer as the trainer reads it."""
    return text if tokenizer.chat_template is None else [{"role": "assistant", "content": text}]


def prompt_ids(question: str, tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    """Return a problem's token ids, as the trainer makes them."""
    prompt = prompt_of(question, tokenizer)
    plain = isinstance(prompt, str)
    text = prompt if plain else tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
    return torch.tensor(tokenizer(str(text), add_special_tokens=plain)["input_ids"], dtype=torch.int64)


def _whole(path: Path, make: Callable[[Path], Any]) -> None:
    """Make a file or folder under another name, so that it appears only when it is complete."""
    unfinished = path.with_name(f"{path.name}.part")
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    make(unfinished)
    unfinished.rename(path)


def main(arguments: list[str]) -> None:
    options = _options(arguments)
    if not options.tiny and not torch.cuda.is_available():
        sys.exit("paper gpu: expected a GPU, got none; --tiny runs on a CPU, to see the command run to its end")
    device = torch.device("cpu" if options.tiny else "cuda")
    plan = TINY if options.tiny else PLAN
    check = Check(plan, options.model, options.dataset, options.folder, device)
    file = (options.folder if options.tiny else RESULTS / "paper") / "gpu.csv"
    rows = measure(check, options.seeds, file)
    print(columns([cells(row) for row in rows]))


def measure(check: Check, seeds: int, file: Path) -> list[Trained]:
    """Add the runs that a file lacks, and return all."""
    facts = facts_of(check)
    rows = read(file, Trained)[1] if agrees(file, facts, SAME) else []
    done = {(row.arm, row.seed, row.learning_rate) for row in rows}
    for seed, rate, arm in itertools.product(range(seeds), check.plan.rates, ARMS):
        if (arm, seed, rate) not in done:
            print(f"{arm}, seed {seed}, learning rate {rate:g}", flush=True)
            rows.append(check.train(arm, seed, rate))
            write(file, Trained, facts, rows)
    return rows


def facts_of(check: Check) -> Facts:
    """Return the head of the results."""
    plan = check.plan
    made = f"Llama from a config, width {plan.hidden}, {plan.layers} layers, {plan.taught} supervised steps"
    own = {"model": check.model or made, "dataset": check.dataset or "generated problems", "plan": repr(plan)}
    return {**environment(check.device), **own}


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks paper gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", help="name or folder, such as Qwen/Qwen2.5-0.5B-Instruct. Default: made from a config"
    )
    parser.add_argument(
        "--dataset", help="columns question and answer, such as openai/gsm8k. Default: generated problems"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("paper-gpu"), help="start, samples and runs")
    parser.add_argument("--tiny", action="store_true", help="on a CPU, to see the command run to its end")
    options = parser.parse_args(arguments)
    if options.seeds < 1:
        parser.error(f"expected --seeds >= 1, got {options.seeds}")
    return options
