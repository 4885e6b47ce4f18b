"""Sequences longer than a model's positions: an error before the first step, or a warning if they are computed."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    Gemma3Config,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    SiglipVisionConfig,
)

from humanline_fused.training.positions import PositionLimit, position_limit, position_limit_of
from tests.tiny_model import WORDS, tiny_model, tiny_trainer, trained

LIMIT = 12
GPT2: dict[str, Any] = {"n_embd": 16, "n_layer": 1, "n_head": 2}
BERT: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
SEQ2SEQ: dict[str, Any] = {"d_model": 16, "decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 16}

TABLES: dict[str, dict[str, Any]] = {
    "gpt2": GPT2,
    "gpt_bigcode": GPT2,
    "openai-gpt": GPT2,
    "opt": BERT | {"ffn_dim": 16, "word_embed_proj_dim": 8},  # two rows before position 0
    "biogpt": BERT,
    "bart": SEQ2SEQ,
    "pegasus": SEQ2SEQ,  # sines and cosines, in a table
    "bert": BERT | {"is_decoder": True},  # token types beside the positions
    "roberta": BERT | {"is_decoder": True},  # the positions of padding are in the table
    "gptj": GPT2 | {"rotary_dim": 4},  # rotary, by a constant table
}


def config_of(name: str, **sizes: Any) -> PretrainedConfig:
    special = {"vocab_size": 60, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    architecture: Any = CONFIG_MAPPING[name]
    return architecture(**special | {"max_position_embeddings": LIMIT} | sizes)


def fits(model: PreTrainedModel, length: int) -> bool:
    try:
        with torch.no_grad():
            model.eval()(input_ids=torch.full((1, length), 5), use_cache=False)
    except (IndexError, RuntimeError):
        return False
    return True


@pytest.mark.parametrize("name", TABLES)
def test_a_table_of_positions_gives_the_longest_sequence_that_the_model_computes(name: str):
    config = config_of(name, **TABLES[name])
    model = AutoModelForCausalLM.from_config(config)
    limit = position_limit_of(model)
    assert limit is not None
    assert limit.is_table
    assert (fits(model, limit.positions), fits(model, limit.positions + 1)) == (True, False)
    assert limit.positions == (LIMIT - 2 if name == "roberta" else LIMIT)
    assert position_limit(config) == limit


@pytest.mark.parametrize(
    ("name", "sizes", "limit"),
    [
        ("llama", BERT, LIMIT),
        ("gpt_neox", BERT, LIMIT),
        ("bloom", {"hidden_size": 16, "n_layer": 1, "n_head": 2}, None),
        ("mamba", {"hidden_size": 16, "num_hidden_layers": 1}, None),
    ],
)
def test_computed_positions_are_those_of_the_config_and_longer_sequences_are_computed(
    name: str, sizes: dict[str, Any], limit: int | None
):
    if limit is None:
        sizes = sizes | {"max_position_embeddings": None}
    config = config_of(name, **sizes)
    model = AutoModelForCausalLM.from_config(config)
    assert position_limit_of(model) == position_limit(config) == (limit and PositionLimit(limit, is_table=False))
    assert fits(model, LIMIT + 1)


def test_positions_that_are_scaled_beyond_the_first_training_count():
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 1e4}
    scaled = config_of("llama", **BERT, rope_parameters=yarn)
    assert position_limit(scaled) == PositionLimit(4 * 32, is_table=False)


def test_a_table_of_something_else_is_no_table_of_positions():
    model = tiny_model(max_position_embeddings=LIMIT)
    model.model.add_module("token_types", nn.Embedding(2, 32))
    model.model.add_module("words_by_layer", nn.Embedding(LIMIT, 2 * 32))
    assert position_limit_of(model) == PositionLimit(LIMIT, is_table=False)


def test_the_patches_of_an_image_tower_are_no_positions_of_a_text():
    text = Gemma3TextConfig(vocab_size=60, head_dim=8, num_key_value_heads=1, max_position_embeddings=4, **BERT)
    vision = SiglipVisionConfig(image_size=16, patch_size=8, **BERT)
    model = AutoModelForCausalLM.from_config(Gemma3Config(text_config=text, vision_config=vision))
    tables = {module.num_embeddings for module in model.modules() if isinstance(module, nn.Embedding)}
    assert 4 in tables
    assert position_limit_of(model) == PositionLimit(4, is_table=False)


def test_a_config_of_no_language_model_of_transformers_has_no_limit():
    assert position_limit(SiglipVisionConfig()) is None


def test_an_adapted_model_has_the_table_of_its_base():
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["c_attn"], fan_in_fan_out=True)
    adapted = peft.get_peft_model(GPT2LMHeadModel(GPT2Config(n_positions=LIMIT, vocab_size=60, **GPT2)), config)
    assert position_limit_of(adapted) == PositionLimit(LIMIT, is_table=True)


# In a run


def words(number: int) -> str:
    return " ".join(WORDS[:number])


def gpt2(positions: int = LIMIT) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=100, n_positions=positions, pad_token_id=0, eos_token_id=1, **GPT2))


def pairs(longest: int) -> list[dict[str, str]]:
    """Return four pairs with a prompt of two tokens; the third's chosen completion ends at token ``longest``."""
    rows = [{"prompt": words(2), "chosen": " w3", "rejected": " w4"} for _ in range(4)]
    rows[2] = rows[2] | {"chosen": " " + words(longest - 3)}  # and the end of sequence
    return rows


SAID = (
    r"max_length=32: expected sequences of at most 12 tokens, the model's table of positions, got 13 \({}\): set "
    r"max_length=12, which cuts them, or use a model with more positions"
)


@pytest.mark.parametrize("dry_run", [False, True])
def test_a_sequence_longer_than_the_table_is_refused_before_anything_is_written(tmp_path: Path, dry_run: bool):
    with pytest.raises(ValueError, match=SAID.format("training example 2")):
        tiny_trainer(tmp_path, model=gpt2(), train_dataset=pairs(13), dry_run=dry_run)
    with pytest.raises(ValueError, match=SAID.format("held-out example 2")):
        tiny_trainer(tmp_path, model=gpt2(), train_dataset=pairs(12), eval_dataset=pairs(13), dry_run=dry_run)


@pytest.mark.parametrize(("longest", "max_length"), [(12, 32), (13, 12)])
def test_a_sequence_as_long_as_the_table_trains_also_after_a_cut(tmp_path: Path, longest: int, max_length: int):
    settings: dict[str, Any] = {"model": gpt2(), "train_dataset": pairs(longest), "max_length": max_length}
    assert trained(tmp_path, max_steps=2, **settings).state.global_step == 2


def test_a_mismatched_pair_counts(tmp_path: Path):
    rows = [{"prompt": words(prompt), "completion": " " + words(9 - prompt), "label": True} for prompt in (8, 2)]
    with pytest.raises(
        ValueError, match=r"of at most 12 tokens.*got 16 \(training example 0's prompt with training example 1's compl"
    ):
        tiny_trainer(tmp_path, objective="kto", model=gpt2(), train_dataset=rows)


def test_a_reference_model_with_fewer_positions_is_refused(tmp_path: Path):
    models = {"model": gpt2(16), "reference_model": gpt2(), "reference": "copy"}
    with pytest.raises(ValueError, match=SAID.format("training example 2")):
        tiny_trainer(tmp_path, train_dataset=pairs(13), **models)


def test_computed_positions_beyond_the_config_are_said_once_in_the_first_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    model = tiny_model(max_position_embeddings=LIMIT)
    trainer = tiny_trainer(tmp_path, model=model, train_dataset=pairs(13), max_steps=1)
    trainer.train()
    said = capsys.readouterr().out.splitlines()
    expected = (
        "; positions: training example 2 has 13 tokens, more than the model's 12 positions (max_position_embeddings): "
        "set max_length=12, unless the model is made for longer texts"
    )
    assert [number for number, line in enumerate(said) if expected in line] == [4]
    trained(tmp_path / "short", model=tiny_model(max_position_embeddings=LIMIT), train_dataset=pairs(12), max_steps=1)
    assert "positions: " not in capsys.readouterr().out


ROUNDS: dict[str, Any] = {
    "objective": "grpo",
    "reference": "copy",
    "rollout_every": 1,
    "num_generations": 2,
    "reward": "tests.test_positions:number_of_words",
}


def number_of_words(prompts: list[str], completions: list[str]) -> list[float]:
    return [float(len(completion.split())) for completion in completions]


def test_in_rounds_the_longest_sample_counts(tmp_path: Path):
    rows = [{"prompt": words(number)} for number in (3, 5)]
    settings = ROUNDS | {"model": gpt2(), "train_dataset": rows}
    said = r"of at most 12 tokens.*got 13 \(training example 1 and max_completion_length=8\): set max_length=12"
    with pytest.raises(ValueError, match=said):
        tiny_trainer(tmp_path, max_completion_length=8, **settings)
    tiny_trainer(tmp_path, max_completion_length=7, **settings)


def test_samples_are_drawn_up_to_the_last_position_and_no_further(tmp_path: Path):
    rows = [{"prompt": words(number)} for number in (3, 5, 11, 5)]
    settings = {"max_length": LIMIT, "max_completion_length": 8, "rollout_batch_size": 8, "max_steps": 2}
    trainer = trained(tmp_path, model=gpt2(), train_dataset=rows, **ROUNDS | settings)
    assert trainer.state.global_step == 2
    assert max(len(e.prompt_ids) + len(e.completions[0]) for e in trainer.train_examples) == LIMIT


def test_a_rotary_model_has_the_limit_of_its_config_without_memory_for_its_weights():
    large = LlamaConfig(hidden_size=2**14, intermediate_size=2**16, num_hidden_layers=4, max_position_embeddings=2**17)
    assert position_limit(large) == PositionLimit(2**17, is_table=False)
