"""TRL's trainers with humanline: TRL's bits where it is off, our own trainer's numbers where it is on."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import trl
from accelerate.utils import DistributedType
from datasets import Dataset
from transformers import AutoModelForCausalLM
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer

from humanline_fused.integrations import trl as integration
from humanline_fused.integrations.trl import Humanline, HumanlineDPOTrainer, HumanlineKTOTrainer
from humanline_fused.reference import AdapterReference
from tests.error_budget import assert_within_budget
from tests.tiny_model import losses, records, tiny_model, tiny_tokenizer, tiny_trainer

STEPS = 6
BATCH = 2
ACCUMULATION = 2
TRAINERS = {"dpo": (DPOTrainer, HumanlineDPOTrainer, DPOConfig), "kto": (KTOTrainer, HumanlineKTOTrainer, KTOConfig)}
# Bounds that bind at the tiny runs' learning rate.
TIGHT = {"log_epsilon_P": -0.1, "log_epsilon_R": 0.05}
SETTINGS: dict[str, Any] = {
    "per_device_train_batch_size": BATCH,
    "gradient_accumulation_steps": ACCUMULATION,
    "max_steps": STEPS,
    "learning_rate": 0.5,
    "lr_scheduler_type": "constant",
    "warmup_steps": 0,
    "optim": "sgd",
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "max_length": 32,
    "beta": 0.5,
    "train_sampling_strategy": "sequential",
}


@pytest.fixture(autouse=True)
def no_telemetry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY", True)


@pytest.fixture(params=["dpo", "kto"])
def objective(request: pytest.FixtureRequest) -> str:
    return request.param


def make(kind: Any, config: Any, output_dir: Path, rows: Any = None, model: Any = None, **settings: Any) -> Any:
    """A trainer of TRL's or of ours on the objective's tiny records."""
    objective = "dpo" if config is DPOConfig else "kto"
    names = ("humanline", "ref_model", "peft_config", "callbacks", "eval_dataset")
    given = {name: settings.pop(name) for name in names if name in settings}
    rows = records(objective, STEPS * BATCH * ACCUMULATION) if rows is None else rows
    args = config(output_dir=str(output_dir), **SETTINGS | settings)
    model = tiny_model() if model is None else model
    data = Dataset.from_list(rows)
    return kind(model, args=args, train_dataset=data, processing_class=tiny_tokenizer(), **given)


def ours(objective: str, output_dir: Path, **settings: Any) -> Any:
    _, kind, config = TRAINERS[objective]
    return make(kind, config, output_dir, **settings)


def run(trainer: Any, **how: Any) -> Any:
    trainer.train(**how)
    return trainer


def weights(trainer: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def logged(trainer: Any, name: str) -> list[float]:
    return [line[name] for line in trainer.state.log_history if name in line]


def start(folder: Path) -> Path:
    """The tiny model in a folder, from which TRL takes its reference."""
    tiny_model().save_pretrained(folder)
    return folder


# Off


@pytest.mark.parametrize("off", [None, Humanline(float("-inf"), float("inf"), sync_every=None)], ids=["None", "wide"])
def test_with_humanline_off_losses_and_weights_are_trls_bitwise(objective: str, off: Humanline | None, tmp_path: Path):
    theirs, mine, config = TRAINERS[objective]
    folder = start(tmp_path / "start")

    def model() -> Any:
        return AutoModelForCausalLM.from_pretrained(folder)

    expected = run(make(theirs, config, tmp_path / "theirs", model=model()))
    actual = run(make(mine, config, tmp_path / "mine", model=model(), humanline=off))
    assert losses(actual) == losses(expected)
    assert len(set(losses(actual))) == STEPS
    assert same(weights(actual), weights(expected))


# On


def own_trainer(objective: str, output_dir: Path, dtype: torch.dtype, sync_every: int) -> Any:
    settings = {name: value for name, value in SETTINGS.items() if name != "train_sampling_strategy"}
    return tiny_trainer(
        output_dir,
        num_examples=STEPS * BATCH * ACCUMULATION,
        model=tiny_model().to(dtype),
        objective=objective,
        reference="copy",
        sync_every=sync_every,
        head="logits",
        **TIGHT,
        **settings,
    )


@pytest.mark.parametrize("sync_every", [1, 3])
def test_losses_and_weights_are_those_of_our_own_trainer_with_a_copied_reference(
    objective: str, sync_every: int, tmp_path: Path
):
    plain = own_trainer(objective, tmp_path / "float32", torch.float32, sync_every)
    oracle = own_trainer(objective, tmp_path / "float64", torch.float64, sync_every)
    rows = records(objective, STEPS * BATCH * ACCUMULATION)
    order = [i for step in range(STEPS) for micro in plain.plan.window(step, 0) for i in micro.ids]
    humanline = Humanline(**TIGHT, sync_every=sync_every)
    theirs = run(ours(objective, tmp_path / "trl", rows=[rows[i] for i in order], humanline=humanline))
    run(plain)
    run(oracle)
    shares = logged(theirs, "humanline/unclamped")
    print(shares)
    print(losses(theirs), losses(plain))
    for name, p in oracle.model.named_parameters():
        a = dict(theirs.model.named_parameters())[name]; b = dict(plain.model.named_parameters())[name]
        print(name, (a.double()-p).abs().max().item(), (b.double()-p).abs().max().item(), p.abs().max().item())
    assert 0
