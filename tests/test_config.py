"""The settings of a run: defaults, and refusal of invalid values with the expected and the given value."""

import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainingArguments

from humanline_fused.training import HumanlineTrainer
from tests.tiny_model import records, tiny_config, tiny_model, tiny_tokenizer


def test_the_policy_may_be_named_by_a_path(tmp_path: Path):
    tiny_model().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    trainer = HumanlineTrainer(tmp_path, tiny_config(tmp_path / "run"), records("dpo", 4))
    assert torch.equal(trainer.model.get_parameter("lm_head.weight"), tiny_model().lm_head.weight)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"objective": "gpro"}, r"objective: expected 'dpo', 'kto', 'grpo' or .*, got 'gpro'; did you mean grpo\?"),
        ({"reference": "moving"}, "reference: expected 'lookahead' or 'copy' or 'adapter' or 'frozen', got 'moving'"),
        ({"sync_every": 0}, "sync_every: expected an integer >= 1, got 0"),
        ({"sync_every": None, "max_length": None}, "max_length: expected an integer >= 1, got None"),
        ({"reference": "frozen", "sync_every": 4}, r"sync_every: expected None with reference='frozen' .*got 4"),
        ({"objective": "kto", "epsilon": 0.1}, r"epsilon: expected 0.2 \(a setting of grpo, not of kto\), got 0.1"),
        ({"desirable_weight": 1.1}, r"desirable_weight: expected 1.0 \(a setting of kto, not of dpo\), got 1.1"),
        ({"log_epsilon_P": 0.5}, "expected log_epsilon_P <= 0 <= log_epsilon_R"),
        ({"log_epsilon_R": math.nan}, "log_epsilon_R: expected a number of nats, got nan"),
        ({"beta": -1.0}, "beta: expected a finite number >= 0, got -1.0"),
        ({"loss_type": "igo"}, r"loss_type: expected .*'sigmoid', 'ipo', 'hinge'.*, got 'igo'; did you mean ipo\?"),
        ({"loss_type": "hinge", "label_smoothing": 0.1}, "label_smoothing: expected 0 with loss_type='hinge', got 0.1"),
        ({"loss_type": "ipo", "beta": 0.0}, "beta: expected a number > 0 with loss_type='ipo', got 0.0"),
        ({"beta": 0.0}, r"beta: expected a number > 0 \(with 0 nothing is learnt\), got 0\.0"),
        ({"objective": "kto", "beta": 0.0}, r"beta: expected a number > 0 \(with 0 nothing is learnt\), got 0\.0"),
        (
            {"objective": "kto", "undesirable_weight": -1.0},
            "undesirable_weight: expected a finite number >= 0, got -1",
        ),
        ({"label_smoothing": 0.7}, r"label_smoothing: expected a number in \[0, 0.5\], got 0.7"),
        ({"objective": "grpo", "epsilon": 1.5}, r"epsilon: expected a number in \[0, 1\], got 1.5"),
        (
            {"objective": "grpo", "scale_rewards": "std"},
            "scale_rewards: expected 'group' or 'batch' or 'none', got 'std'",
        ),
        ({"scale_rewards": False}, r"scale_rewards: expected 'group' \(a setting of grpo, not of dpo\), got 'none'"),
        ({"enable_jit_checkpoint": True}, "enable_jit_checkpoint: expected it to be off"),
        ({"auto_find_batch_size": True}, "auto_find_batch_size: expected it to be off"),
        ({"label_smoothing_factor": 0.1}, "DPO's is label_smoothing"),
        ({"dataloader_drop_last": True}, r"dataloader_drop_last: expected False .*got True"),
        ({"dataloader_num_workers": 2}, r"dataloader_num_workers: expected 0 .*got 2"),
        ({"ignore_data_skip": True}, r"ignore_data_skip: expected False .*got True"),
        ({"train_sampling_strategy": "sequential"}, r"train_sampling_strategy: expected 'random' .*got 'sequential'"),
        ({"push_to_hub": True}, "expected hub_strategy='end'"),
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size: expected an integer >= 1, got 0"),
        ({"per_device_eval_batch_size": 0}, "per_device_eval_batch_size: expected an integer >= 1, got 0"),
        ({"gradient_accumulation_steps": -1}, "gradient_accumulation_steps: expected an integer >= 1, got -1"),
        ({"gradient_accumulation_steps": 2.0}, r"gradient_accumulation_steps: expected an integer >= 1, got 2\.0"),
        ({"max_steps": 0}, r"max_steps: expected an integer >= 1, or -1 \(num_train_epochs\), got 0"),
        ({"max_steps": -1, "num_train_epochs": 0}, "num_train_epochs: expected a finite number > 0, got 0"),
        ({"max_steps": -1, "num_train_epochs": math.inf}, "num_train_epochs: expected a finite number > 0, got inf"),
        ({"max_grad_norm": math.nan}, "max_grad_norm: expected a number >= 0, got nan"),
        ({"max_grad_norm": None}, "max_grad_norm: expected a number >= 0, got None"),
        ({"save_strategy": "steps", "save_steps": 0}, "save_steps: expected a number > 0 with save_strategy='steps'"),
        ({"eval_strategy": "steps", "eval_steps": -2}, "eval_steps: expected a number > 0 with eval_strategy='steps'"),
        ({"bf16_full_eval": True}, "bf16_full_eval: expected it to be off .*weights, which are then saved"),
        ({"fp16_full_eval": True}, "fp16_full_eval: expected it to be off"),
        (
            {"accelerator_config": {"gradient_accumulation_kwargs": {"num_steps": 4}}},
            r"accelerator_config: expected no num_steps \(gradient_accumulation_steps has them\), got 4",
        ),
        ({"lr_scheduler_kwargs": "{bad}"}, r"lr_scheduler_kwargs: expected a mapping in JSON, got '\{bad\}'"),
        ({"lr_scheduler_kwargs": "3"}, "lr_scheduler_kwargs: expected a mapping in JSON, got '3'"),
        ({"accelerator_config": "{bad}"}, r"accelerator_config: expected a mapping in JSON, got '\{bad\}'"),
    ],
)
def test_an_invalid_setting_is_refused(tmp_path: Path, setting: dict[str, Any], said: str):
    with pytest.raises(ValueError, match=said):
        tiny_config(tmp_path, **setting)


def test_settings_of_transformers_keep_their_meaning(tmp_path: Path):
    config = tiny_config(tmp_path, max_steps=-1, num_train_epochs=0.5, max_grad_norm=0.0, save_steps=0.5)
    assert (config.max_steps, config.num_train_epochs, config.save_steps) == (-1, 0.5, 0.5)
    given = tiny_config(tmp_path, lr_scheduler_type="polynomial", lr_scheduler_kwargs='{"power": 2.0}')
    assert given.lr_scheduler_kwargs == {"power": 2.0}


def test_gradient_checkpointing_has_its_name_with_every_transformers(tmp_path: Path):
    given = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # transformers 5.23 renamed both
        config = tiny_config(tmp_path, **given)
    assert {name: getattr(config, name) for name in given} == given


@pytest.mark.parametrize("number", [1e300, -1e300, 1e-300, 10**400], ids=["large", "below", "small", "huge"])
@pytest.mark.parametrize("name", ["beta", "loss_temperature", "entropy_coef", "log_epsilon_R", "learning_rate"])
def test_a_setting_that_float32_does_not_hold_is_refused_with_the_reason(tmp_path: Path, name: str, number: float):
    with pytest.raises(ValueError, match=f"^{name}: expected a number, got -?1.*, which float32 does not hold$"):
        tiny_config(tmp_path, **{name: number})


@pytest.mark.parametrize(("objective", "beta"), [("dpo", 0.1), ("kto", 0.1), ("grpo", 0.0)])
def test_beta_defaults_to_that_of_the_objective(tmp_path: Path, objective: str, beta: float):
    assert tiny_config(tmp_path, objective=objective, beta=None).beta == beta


def test_every_reference_except_a_frozen_one_is_synced_at_every_step_by_default(tmp_path: Path):
    cadence = {name: tiny_config(tmp_path, reference=name).sync_every for name in ("lookahead", "copy", "frozen")}
    assert cadence == {"lookahead": 1, "copy": 1, "frozen": None}
    assert tiny_config(tmp_path, sync_every=4).sync_every == 4


def test_scale_rewards_accepts_the_booleans_of_trl(tmp_path: Path):
    said = {
        value: tiny_config(tmp_path, objective="grpo", scale_rewards=value).scale_rewards for value in (True, False)
    }
    assert said == {True: "group", False: "none"}


def test_a_cpu_has_no_index_because_no_file_can_be_loaded_onto_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(TrainingArguments, "_setup_devices", torch.device("cpu", 1))
    assert tiny_config(tmp_path).device == torch.device("cpu")
    monkeypatch.setattr(TrainingArguments, "_setup_devices", torch.device("meta", 1))
    assert tiny_config(tmp_path).device == torch.device("meta", 1)


@pytest.mark.parametrize("given", [Path("x"), [Path("x")], ["none", 1]])
def test_names_that_are_no_texts_are_refused(tmp_path: Path, given: Any):
    with pytest.raises(TypeError, match=r"report_to: expected texts, got (PosixPath|int)"):
        tiny_config(tmp_path, report_to=given)
