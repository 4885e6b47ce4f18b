"""Memory of a training step from a config alone, beside measured peaks of training on a CPU."""

import gc
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel

from benchmarks.measure import peak_bytes
from humanline_fused.cli import main
from humanline_fused.memory import estimate as estimates
from humanline_fused.memory.estimate import MOST_TOKENS, Estimate
from humanline_fused.memory.fit import lines
from humanline_fused.training.model_settings import ModelSettings
from tests.tiny_model import tiny_trainer

CPU = (2**27, 2**27)
"""The head's chunk of logits on a CPU."""

SIZES: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 352, "num_attention_heads": 4, "vocab_size": 2000}
LAYERS = 3
TOKENS = 16 * 64
"""Tokens of a micro-batch: eight pairs of completions with 63 tokens, behind a prompt of one."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a config and nothing else."""
    folder = tmp_path_factory.mktemp("config")
    LlamaConfig(**SIZES, num_hidden_layers=LAYERS, max_position_embeddings=128).save_pretrained(folder)
    return str(folder)


@cache
def _estimate(folder: str, settings: tuple[tuple[str, Any], ...], kind: tuple[tuple[str, Any], ...]) -> Estimate:
    return estimates.estimate(folder, ModelSettings(**dict(settings)), **dict(kind))


def estimate(folder: str, settings: dict[str, Any] | None = None, **kind: Any) -> Estimate:
    """Return the estimate for a folder, computed once for the tests of this file."""
    return _estimate(folder, tuple((settings or {}).items()), tuple(kind.items()))


def pairs() -> list[dict[str, str]]:
    texts = [" ".join(["", *(f"w{(i * j + side) % 90}" for j in range(62))]) for i in range(16) for side in (0, 1)]
    return [{"prompt": "w1", "chosen": a, "rejected": b} for a, b in zip(texts[::2], texts[1::2], strict=True)]


def measured(folder: str, output_dir: Path, **settings: Any) -> int:
    """Return the peak of two steps of AdamW, from the construction of the model on."""

    def train() -> None:
        config = LlamaConfig.from_pretrained(folder)
        model = LlamaForCausalLM(config)
        sizes = {"per_device_train_batch_size": 8, "max_steps": 2, "max_length": 64, "layout": "padded"}
        tiny_trainer(output_dir, model=model, train_dataset=pairs(), **sizes | settings).train()

    gc.collect()  # what an earlier run left would be freed inside the call, and count as less than nothing
    return peak_bytes(train, torch.device("cpu"))


# By hand


def test_weights_gradients_and_optimizer_are_counted_from_the_config(folder: str):
    h, i, v, layers = 128, 352, 2000, LAYERS
    number = 2 * v * h + h + layers * (4 * h * h + 3 * h * i + 2 * h)
    found = estimate(folder, bf16=False)
    assert found.parameters == found.trained == number
    assert found.fixed == {
        **{"weights": 4 * number, "gradients": 4 * number, "optimizer": 8 * number},
        **{"reference": 0, "weights, cast": 0},
    }


def test_a_layer_with_checkpointing_keeps_its_input(folder: str):
    found = estimate(folder, bf16=False)
    one_more = Path(folder, "deeper")
    LlamaConfig(**SIZES, num_hidden_layers=LAYERS + 1).save_pretrained(one_more)
    deeper = estimate(str(one_more), bf16=False)
    assert deeper.saved.per_token_checkpointed - found.saved.per_token_checkpointed == 4 * 128
    assert deeper.saved.per_token - found.saved.per_token > 10 * 4 * 128


def test_computing_in_bfloat16_casts_every_product_s_weight_and_keeps_less_of_a_token(folder: str):
    single, half = (estimate(folder, bf16=bf16) for bf16 in (False, True))
    h, i, v, layers = 128, 352, 2000, LAYERS
    assert half.fixed["weights, cast"] == 2 * (layers * (4 * h * h + 3 * h * i) + v * h)
    assert half.saved.per_token < single.saved.per_token


@pytest.mark.parametrize("reference", ["copy", "frozen"])
def test_a_second_model_costs_its_weights(folder: str, reference: Any):
    found = estimate(folder, reference=reference)
    assert found.fixed["reference"] == found.fixed["weights"] == 4 * found.parameters


def test_an_adapter_has_the_only_gradients_and_its_reference_its_own_size(folder: str):
    pytest.importorskip("peft")
    settings = {"model_dtype": "bfloat16", "lora_r": 4, "lora_target_modules": ("v_proj",)}
    found = estimate(folder, settings, reference="adapter")
    assert found.trained == LAYERS * 2 * 4 * 128
    assert found.fixed["gradients"] == found.fixed["reference"] == found.fixed["optimizer"] / 2
    assert not found.trains_head


def test_the_most_tokens_are_the_last_that_fit(folder: str):
    found = estimate(folder)
    for checkpointing in (False, True):
        most = found.most_tokens(1e9, checkpointing=checkpointing)
        assert found.total(most, checkpointing=checkpointing) <= 1e9
        assert found.total(most + 1, checkpointing=checkpointing) > 1e9
    assert found.most_tokens(1e6, checkpointing=True) == 0


# Beside measured peaks: the parts are added though their peaks do not coincide, so the sum is an upper bound.

FACTOR = 1.6
"""The largest sum over a measured peak. With checkpointing it is largest: gradients come as the activations go."""

SHORT = 1.1
"""The most that a peak may exceed the sum by: `fit` leaves a tenth of a GPU for what it does not count."""


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({}, {}),
        ({"gradient_checkpointing": True}, {"checkpointing": True}),
        ({"reference": "copy"}, {"reference": "copy"}),
        ({"lora_r": 4}, {"lora_r": 4}),
        ({"bf16": True}, {"bf16": True}),
    ],
    ids=lambda value: "-".join(value) or "plain",
)
def test_the_sum_is_near_the_measured_peak_or_above_it(
    folder: str, tmp_path: Path, settings: dict[str, Any], kind: dict[str, Any]
):
    kind = {"bf16": False} | kind
    checkpointing, lora = kind.pop("checkpointing", False), {"lora_r": kind.pop("lora_r", None)}
    found = estimate(folder, lora, workspace=CPU, **kind)
    peak = measured(folder, tmp_path, **settings)
    total = found.total(TOKENS, checkpointing=checkpointing)
    assert peak / SHORT <= total <= FACTOR * peak


# The command


def test_the_command_prints_the_parts_and_the_gpus(folder: str, capsys: pytest.CaptureFixture[str]):
    assert main(["fit", "--model", folder, "--tokens", "4096", "--reference", "copy"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0].endswith("parameters, all trained; AdamW; 4096 tokens a forward pass, all counting")
    assert [line.split()[0] for line in table[2:4]] == ["memory", "MB"]
    parts = [line.split()[0] for line in table[4:12]]
    assert parts == ["weights", "gradients", "optimizer", "reference", "weights,", "activations", "head", "sum,"]
    assert [line.split()[0] for line in table[15:]] == ["16", "24", "40", "48", "80", "141", "192"]


def test_the_most_tokens_that_are_looked_for_are_no_most_tokens_that_fit(folder: str):
    found = estimate(folder)
    last = lines(replace(found, saved=replace(found.saved, per_token=0.0, largest=0.0)), "it", 1)[-1].split()
    assert last[:4] == ["192", "GB", ">=", f"{MOST_TOKENS:,}"]
    assert last[4] != ">="


def test_a_small_step_is_printed_in_mb(folder: str):
    table = lines(estimate(folder), "it", 1)
    assert table[3].startswith("MB (10^6 bytes)")
    assert float(table[4].split()[1]) == pytest.approx(4e-6 * estimate(folder).parameters, abs=0.005)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--tokens=0"], "--tokens: expected an integer >= 1, got 0"),
        (["--model=./absent", "--tokens=1"], "absent"),
        (["--tokens=1", "--load_in_4bit=true"], "--load_in_4bit: expected false without --lora_r"),
        (["--tokens=1", "--reference=adapter"], "--reference adapter: expected --lora_r beside it, got none"),
        (["--tokens=1", "--dtype=int8"], "model_dtype: expected float32"),
        (["--tokens=1", "--lora_r=4", "--lora_target_modules=c_attn"], "lora_target_modules: expected all-linear or"),
    ],
)
def test_what_cannot_be_computed_is_one_line(folder: str, argv: list[str], message: str, capsys):
    assert main(["fit", "--model", folder, *argv]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line


def test_a_model_whose_forward_depends_on_numbers_is_refused(folder: str, monkeypatch: pytest.MonkeyPatch, capsys):
    forward = LlamaModel.forward

    def depends(model: LlamaModel, input_ids: torch.Tensor, **settings: Any) -> Any:
        return forward(model, input_ids[:, : int(input_ids.max()) + 1], **settings)

    monkeypatch.setattr(LlamaModel, "forward", depends)
    assert main(["fit", "--model", folder, "--tokens=8"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "the activations of LlamaForCausalLM cannot be computed from its config" in line
