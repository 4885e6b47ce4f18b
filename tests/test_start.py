"""Summary, checks and refusals of a run before its first step."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from humanline_fused.training import HumanlineTrainer
from humanline_fused.training.initial_scores import INITIAL_SCORES
from humanline_fused.training.run.checkpoint import MANIFEST, seal
from humanline_fused.training.run.resumable import IDENTITY
from humanline_fused.training.run.summary import as_bytes, bytes_of
from humanline_fused.training.start import identify
from tests.tiny_model import records, tiny_model, tiny_trainer, trained

FLOATS = 100 * 32 + 2 * (4 * 32 * 32 + 3 * 32 * 48 + 2 * 32) + 32 + 32 * 100
"""Size of the tiny model: embedding, two layers (attention, MLP, norms), last norm, head; without the rotary buffer."""


@pytest.mark.parametrize(
    ("settings", "reference", "forwards", "sync"),
    [
        ({"sync_every": 4}, "look-ahead k=4, 93.7 KiB of weights saved", 2, "first sync at step 0"),
        ({"objective": "kto"}, "look-ahead k=1, 93.7 KiB of weights saved", 4, "first sync at step 0"),
        ({"reference": "copy"}, "copy k=1, 93.7 KiB of weights more", 2, "first sync at step 0"),
        ({"reference": "frozen"}, "frozen, 93.7 KiB of weights more", 2, "no sync"),
    ],
)
def test_one_line_states_how_the_model_is_scored_and_the_cost_of_its_reference(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    settings: dict[str, Any],
    reference: str,
    forwards: int,
    sync: str,
):
    trained(tmp_path, max_steps=1, **settings)
    head, rest = capsys.readouterr().out.splitlines()[2].split("; ", 1)
    assert re.fullmatch(r"head check: max \|Δlogp\| \de[-+]\d\d", head)
    assert rest == f"reference: {reference}; forwards per micro-batch {forwards}; {sync}"


def test_with_the_models_own_logits_there_is_no_head_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    trained(tmp_path, max_steps=1, head="logits")
    assert capsys.readouterr().out.splitlines()[2].startswith("head: the model's own logits; reference: look-ahead")


def weights_of_second(model: nn.Module) -> int:
    return bytes_of([*model.parameters(), *model.buffers()])


def test_the_bytes_of_a_second_model_count_a_shared_tensor_once():
    rotary = 2 * 8  # inverse frequencies, and their original copy
    assert weights_of_second(tiny_model()) == 4 * (FLOATS + rotary)
    assert weights_of_second(tiny_model(tie_word_embeddings=True)) == 4 * (FLOATS - 3200 + rotary)
    assert as_bytes(4 * (FLOATS + rotary)) == "93.7 KiB"


@pytest.mark.parametrize("strategy", ["steps", "epoch"])
def test_a_dry_run_prints_the_summary_takes_no_step_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], strategy: str
):
    held_out = {"eval_dataset": records("dpo", 4, 5), "eval_strategy": strategy, "eval_steps": 1, "eval_on_start": True}
    trainer = trained(tmp_path, dry_run=True, save_strategy=strategy, save_steps=1, **held_out)
    assert trainer.state.global_step == 0
    assert all(torch.equal(a, b) for a, b in zip(trainer.model.parameters(), tiny_model().parameters(), strict=True))
    assert list(tmp_path.rglob("*")) == []
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[:3]] == ["dpo", "data", "head check"]


def test_models_are_identified_by_class_names_and_shapes_not_by_weights():
    same = identify(tiny_model(0)), identify(tiny_model(1))
    assert same[0] == same[1]
    others = [identify(tiny_model(num_key_value_heads=1)), identify(tiny_model(intermediate_size=64))]
    assert len({str(sorted(model.items())) for model in (*others, same[0])}) == 3
    assert others[0]["class"] == "LlamaForCausalLM"


def test_a_checkpoint_of_another_model_is_refused_before_a_weight_is_loaded(tmp_path: Path):
    saving = {"save_strategy": "steps", "save_steps": 2}
    trained(tmp_path / "run", **saving)
    other = tiny_trainer(tmp_path / "other", model=tiny_model(intermediate_size=64), **saving)
    before = other.model.get_parameter("lm_head.weight").clone()
    with pytest.raises(ValueError, match=r"expected the model that .*checkpoint-4 was written with, .*numbers.*got"):
        other.train(str(tmp_path / "run" / "checkpoint-4"))
    assert torch.equal(other.model.get_parameter("lm_head.weight"), before)


def test_a_refused_checkpoint_does_not_change_the_initial_scores_of_the_run(tmp_path: Path):
    settings = {"save_strategy": "steps", "save_steps": 2, "eval_dataset": records("dpo", 4, 5)}
    for name, model in (("mine", tiny_model()), ("other", tiny_model(intermediate_size=64))):
        trained(tmp_path / name, model=model, max_steps=2, **settings)
    kept = (tmp_path / "mine" / INITIAL_SCORES).read_bytes()
    (tmp_path / "mine" / "checkpoint-2").rename(tmp_path / "moved")
    with pytest.raises(ValueError, match="expected the model that"):
        tiny_trainer(tmp_path / "mine", **settings).train(str(tmp_path / "other" / "checkpoint-2"))
    assert (tmp_path / "mine" / INITIAL_SCORES).read_bytes() == kept


def test_a_checkpoint_of_another_trainer_is_refused(tmp_path: Path):
    trained(tmp_path, save_strategy="steps", save_steps=2)
    folder = tmp_path / "checkpoint-6"
    (folder / IDENTITY).unlink()
    (folder / MANIFEST).unlink()
    seal(folder)
    with pytest.raises(ValueError, match=r"expected .*run\.json: the checkpoint was not written by this trainer"):
        tiny_trainer(tmp_path, resume_from_checkpoint=str(folder)).train()


# A compiled model


def test_a_compiled_model_trains_to_the_same_bits(tmp_path: Path):
    """dynamo's own backend captures the graphs and runs them unchanged."""
    compiled: dict[str, Any] = {"torch_compile": True, "torch_compile_backend": "eager"}
    runs = [
        trained(tmp_path / str(i), model=tiny_model(num_hidden_layers=1), max_steps=1, **settings)
        for i, settings in enumerate(({}, compiled))
    ]
    assert isinstance(runs[1].model_wrapped, torch._dynamo.OptimizedModule)
    assert weights_of(runs[0]) == weights_of(runs[1])


def weights_of(trainer: HumanlineTrainer) -> list[Any]:
    model = getattr(trainer.model, "_orig_mod", trainer.model)
    assert isinstance(model, nn.Module)
    return [parameter.tolist() for parameter in model.parameters()]
