"""Settings that humanline refuses in TRL's trainers, and their messages."""

import importlib
import sys
from pathlib import Path
from typing import Any

import peft
import pytest
import trl
from accelerate.utils import DistributedType

from humanline_fused.integrations.trl import Humanline, version
from tests.tiny_model import tiny_model
from tests.tiny_trl import adapted, ours


@pytest.mark.parametrize(
    ("objective", "setting", "message"),
    [
        ("dpo", {"sync_ref_model": True}, "sync_ref_model: expected False .*, got True"),
        ("kto", {"sync_ref_model": True}, "sync_ref_model: expected False .*, got True"),
        ("dpo", {"precompute_ref_log_probs": True}, "precompute_ref_log_probs: expected False .*, got True"),
        ("kto", {"precompute_ref_log_probs": True}, "precompute_ref_log_probs: expected False .*, got True"),
        ("dpo", {"loss_type": ["aot"]}, r"loss_type: expected sigmoid, hinge, .*, got 'aot' \(it sorts .*\)"),
        ("dpo", {"loss_type": ["sigmoid", "sft"]}, r"loss_type: expected .*, got 'sft' \(it needs .* log-probs, .*\)"),
        ("dpo", {"loss_type": ["simpo"]}, r"loss_type: expected sigmoid, .*sigmoid_norm, got 'simpo'$"),
        ("kto", {"loss_type": "bco"}, "loss_type: expected kto, apo_zero_unpaired, got 'bco'"),
        ("dpo", {"f_divergence_type": "forward_kl"}, "f_divergence_type: expected 'reverse_kl' .*, got 'forward_kl'"),
        ("dpo", {"ld_alpha": 0.5}, "ld_alpha: expected None .*, got 0.5"),
        ("dpo", {"use_weighting": True}, "use_weighting: expected False .*, got True"),
        ("kto", {"use_liger_kernel": True}, "use_liger_kernel: expected False .*, got True"),
        ("dpo", {"enable_jit_checkpoint": True}, "enable_jit_checkpoint: expected False .*, got True"),
    ],
)
def test_a_setting_that_would_silently_break_humanline_is_refused(
    objective: str, setting: dict[str, Any], message: str, tmp_path: Path
):
    with pytest.raises(ValueError, match=message):
        ours(objective, tmp_path, **setting)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"log_epsilon_P": 0.5}, "expected log_epsilon_P <= 0 <= log_epsilon_R, got log_epsilon_P=0.5"),
        ({"sync_every": 0}, "sync_every: expected an integer >= 1 or None, got 0"),
        ({"sync_every": True}, "sync_every: expected an integer >= 1 or None, got True"),
        ({"sync_every": 1.5}, "sync_every: expected an integer >= 1 or None, got 1.5"),
        ({"head": "logits"}, "head: expected one of auto, fused, trl, got 'logits'"),
        ({"layout": "sorted"}, "layout: expected one of auto, shared_prompt, padded, got 'sorted'"),
        ({"head": "trl", "layout": "shared_prompt"}, "layout: expected 'auto' or 'padded' with head='trl', got"),
    ],
)
def test_bounds_and_sync_are_checked(given: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        Humanline(**given)


def test_settings_of_humanline_in_a_mapping_are_refused(tmp_path: Path):
    with pytest.raises(TypeError, match=r"humanline: expected Humanline\(\.\.\.\) or None, got dict"):
        ours("dpo", tmp_path, humanline={"sync_every": 1})


def test_a_reference_of_another_shape_or_in_addition_to_an_adapter_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="expected reference and policy to have the same parameters"):
        ours("dpo", tmp_path, ref_model=tiny_model(num_hidden_layers=2))
    with pytest.raises(ValueError, match="ref_model: expected None with a PEFT model"):
        ours("dpo", tmp_path, model=adapted(), ref_model=tiny_model())


def test_an_adapter_that_a_second_one_cannot_represent_is_refused(tmp_path: Path):
    named = adapted()
    named.add_adapter("ref", named.peft_config["default"])
    with pytest.raises(ValueError, match="model: expected no adapter called 'ref'"):
        ours("dpo", tmp_path, model=named)
    prompts = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    with pytest.raises(ValueError, match=r"model: expected LoRA .* got .*PROMPT_TUNING"):
        ours("dpo", tmp_path, peft_config=prompts)


@pytest.mark.parametrize("engine", [DistributedType.FSDP, DistributedType.DEEPSPEED])
def test_an_engine_that_shards_the_model_is_refused(
    engine: DistributedType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    trainer = ours("dpo", tmp_path)
    monkeypatch.setattr(type(trainer.accelerator), "distributed_type", engine)
    with pytest.raises(ValueError, match=f"expected a whole model in every process .*, got {engine.value}"):
        trainer._refuse_engine()


def test_another_version_of_trl_or_none_is_refused_at_import(monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as patch:
        patch.setattr(trl, "__version__", "1.17.0")
        with pytest.raises(ImportError, match=r"expected trl>=1.16,<1.17, got 1.17.0: pip install 'humanline-fused"):
            importlib.reload(version)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "trl", None)
        with pytest.raises(ImportError, match=r"pip install 'humanline-fused\[trl\]'"):
            importlib.reload(version)
