"""Kinds of models that train as a plain one does: a text model beside an image tower, LoRA with checkpointing."""

import math
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    SiglipVisionConfig,
)

from tests.tiny_model import losses, tiny_model, trained

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


def gemma3_text() -> Gemma3ForCausalLM:
    torch.manual_seed(0)
    special = {"vocab_size": 100, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
    attention = {"num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 64, "sliding_window": 4}
    return Gemma3ForCausalLM(Gemma3TextConfig(**SIZES, **special, **attention))


def gemma3_with_tower(folder: Path) -> Any:
    """Return :func:`gemma3_text` beside an image tower, loaded as a run loads it."""
    text = gemma3_text()
    vision = SiglipVisionConfig(image_size=16, patch_size=8, **SIZES)
    images = {"mm_tokens_per_image": 4, "image_token_index": 99, "boi_token_index": 98, "eoi_token_index": 97}
    model = Gemma3ForConditionalGeneration(Gemma3Config(text_config=text.config, vision_config=vision, **images))
    model.model.language_model.load_state_dict(text.model.state_dict())
    model.tie_weights()
    model.save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize("head", ["fused", "logits"])
def test_beside_an_image_tower_a_text_model_trains_to_the_same_losses(tmp_path: Path, head: str):
    """Its forward asks for token types in training where images are given; on text it is causal without them."""
    tower = gemma3_with_tower(tmp_path / "start")
    assert type(tower) is Gemma3ForConditionalGeneration
    run = trained(tmp_path / "tower", model=tower, head=head, max_steps=4)
    plain = trained(tmp_path / "text", model=gemma3_text(), head=head, max_steps=4)
    assert losses(run) == losses(plain)
    assert losses(run)[0] == pytest.approx(math.log(2), rel=torch.finfo(torch.float32).eps)
    assert losses(run)[-1] != losses(run)[0]


def adapted() -> Any:
    base = tiny_model()
    torch.manual_seed(1)
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["v_proj"], init_lora_weights=False)
    return peft.get_peft_model(base, config)


def losses_of_lora(folder: Path, **settings: Any) -> list[float]:
    model = adapted()
    before = {path: p.detach().clone() for path, p in model.named_parameters() if p.requires_grad}
    trainer = trained(folder, model=model, sync_every=2, max_steps=4, **settings)
    assert all(not torch.equal(model.get_parameter(path), weight) for path, weight in before.items())
    return losses(trainer)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The losses without gradient checkpointing, which are those of every reference."""
    return losses_of_lora(tmp_path_factory.mktemp("alone"))


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("reference", ["lookahead", "adapter", "copy"])
def test_lora_with_gradient_checkpointing_has_the_losses_of_lora_alone(
    tmp_path: Path, alone: list[float], reference: str, reentrant: bool
):
    settings = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": reentrant}}
    assert losses_of_lora(tmp_path, reference=reference, **settings) == alone
    assert alone[-1] != alone[0]
