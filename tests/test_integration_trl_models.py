"""TRL's trainer with humanline on other models than the tiny Llama: the losses of HumanlineTrainer."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from humanline_fused.integrations.trl import Humanline
from tests.test_integration_trl import assert_same_run, in_order_of, own_trainer
from tests.test_trained_models import gemma3_with_tower
from tests.tiny_trl import TIGHT, logged, ours, run


def gpt2_tied(_: Path) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    special = {"vocab_size": 100, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1}
    dropout = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
    return GPT2LMHeadModel(GPT2Config(n_positions=64, n_embd=32, n_layer=2, n_head=2, **special, **dropout))


@pytest.mark.parametrize("model_of", [gpt2_tied, gemma3_with_tower])
def test_a_tied_gpt2_and_a_gemma3_with_an_image_tower_train_as_in_humanline_trainer(tmp_path: Path, model_of: Any):
    settings = {"sync_every": 2, "learning_rate": 0.02}
    plain, oracle = (
        own_trainer("dpo", tmp_path / str(dtype), dtype, model=model_of(tmp_path / "start"), **settings)
        for dtype in (torch.float32, torch.float64)
    )
    rows, humanline = in_order_of(plain.plan, "dpo"), Humanline(**TIGHT, sync_every=2)
    actual = ours(
        "dpo", tmp_path / "trl", rows=rows, model=model_of(tmp_path / "start"), humanline=humanline, learning_rate=0.02
    )
    for trainer in (actual, plain, oracle):
        run(trainer)
    assert_same_run(actual, plain, oracle)
    assert logged(actual, "loss")[0] == pytest.approx(math.log(2), rel=1e-6)
    assert logged(actual, "loss")[-1] != logged(actual, "loss")[0]
