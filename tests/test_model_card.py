"""The model card of an export: what the run was, the same bytes for the same run, and nobody's README overwritten."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from huggingface_hub import ModelCard

from humanline_fused import __version__
from humanline_fused.training import HumanlineTrainer
from humanline_fused.training.run.model_card import CARD, card_text
from tests.tiny_model import records, tiny_config, tiny_model, tiny_tokenizer, tiny_trainer

SETTINGS: dict[str, Any] = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "sync_every": 3}


def exported(folder: Path, **settings: Any) -> HumanlineTrainer:
    """Train, evaluate and export, as `humanline train` does."""
    trainer = tiny_trainer(folder, eval_dataset=records("dpo", 4, seed=5), **SETTINGS | settings)
    trainer.train()
    trainer.evaluate()
    trainer.save_model()
    return trainer


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> HumanlineTrainer:
    return exported(tmp_path_factory.mktemp("run"))


@pytest.fixture
def card(run: HumanlineTrainer) -> str:
    return (run.run_dir / CARD).read_text()


def front(card: str) -> Any:
    """Return the front matter as the Hub's library reads it."""
    return ModelCard(card).data


def rows(card: str) -> dict[str, str]:
    """Return the cells of the card's tables by those on their left."""
    lines = [line.strip("| ").split(" | ") for line in card.splitlines() if line.startswith("| ")]
    return {cells[0]: cells[1] for cells in lines}


def test_a_card_says_how_the_model_was_trained(run: HumanlineTrainer, card: str):
    said = rows(card)
    assert said["loss"] == "dpo: clamp [-1.5, 1.5] nats, loss_type=sigmoid, beta=0.5"
    assert said["reference"] == "lookahead, synced with the policy every k=3 steps, before the update"
    fingerprint = run.identity()["batches"]["data"]
    assert said["data"] == f"given in memory, 10 examples (fingerprint {fingerprint}), at most 32 tokens each"
    assert said["steps"] == "4 of 4 steps with 2 examples each, seed 42"
    assert "learning_rate=0.003, lr_scheduler_type=linear, warmup_steps=0, weight_decay=0.01" in said["optimizer"]
    versions = f"humanline-fused {__version__}, torch {torch.__version__}, transformers {transformers.__version__}"
    assert said["versions"] == versions
    assert "clamp and synced reference of [humanline](https://arxiv.org/abs/2509.24207)." in card
    assert "eprint = {2509.24207}" in card
    assert f"version = {{{__version__}}}" in card


def test_a_card_has_the_held_out_numbers_of_the_last_evaluation(run: HumanlineTrainer, card: str):
    last = [line for line in run.state.log_history if "eval_loss" in line][-1]
    metrics = {name: said for name, said in rows(card).items() if name.startswith("eval_")}
    assert metrics["eval_rewards_initial/margins"] == f"{last['eval_rewards_initial/margins']:.4g}"
    assert not any("runtime" in name or "per_second" in name for name in metrics)
    assert "After step 4, relative to the base model:" in card


def test_a_card_has_the_held_out_numbers_of_the_weights_that_it_is_with(tmp_path: Path):
    """Those of the best model's step; at this learning rate the evaluation at step 4 is worse than that at step 2."""
    best = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "eval_strategy": "steps", "eval_steps": 2}
    trainer = tiny_trainer(
        tmp_path, eval_dataset=records("dpo", 4, seed=5), reference="copy", learning_rate=1.0, **SETTINGS | best
    )
    trainer.train()
    trainer.save_model()
    card = (tmp_path / CARD).read_text()
    losses = {line["step"]: line["eval_loss"] for line in trainer.state.log_history if "eval_loss" in line}
    assert losses[2] < losses[4]
    assert "the weights of step 2, the best by loss" in rows(card)["steps"]
    assert "After step 2, relative to the base model:" in card
    assert rows(card)["eval_loss"] == f"{losses[2]:.4g}"


def test_the_hub_reads_the_front_matter(card: str):
    data = front(card)
    assert (data.library_name, data.pipeline_tag, data.tags) == (
        "transformers",
        "text-generation",
        ["humanline", "dpo"],
    )
    assert data.base_model is data.datasets is None


def test_only_a_hub_name_is_a_base_model_or_a_dataset_of_the_front_matter(run: HumanlineTrainer, tmp_path: Path):
    def card_of(model: str, dataset: str) -> tuple[Any, dict[str, str]]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(run.model.config, "_name_or_path", model)
            patch.setattr(run.args, "dataset", dataset)
            text = card_text(run)
        return front(text), rows(text)

    data, said = card_of("some/model", "some/data")
    assert (data.base_model, data.datasets) == ("some/model", ["some/data"])
    data, said = card_of(str(tmp_path), str(tmp_path / "pairs|1.jsonl"))
    assert data.base_model is data.datasets is None
    assert said["base model"] == f"`{tmp_path.name}` (local)"
    assert said["data"].startswith("`pairs\\|1.jsonl` (local), 10 examples")


def test_a_resumed_run_writes_the_card_of_the_whole_run(run: HumanlineTrainer, card: str, tmp_path: Path):
    shutil.copytree(run.run_dir, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoint-4", CARD))
    exported(tmp_path / "run", resume_from_checkpoint="auto")
    assert (tmp_path / "run" / CARD).read_text() == card


def test_a_checkpoint_has_no_card(run: HumanlineTrainer):
    assert [file.parent.name for file in run.run_dir.rglob(CARD)] == [run.run_dir.name]


@pytest.mark.parametrize("theirs", ["# Mine\n", "---\nlicense: mit\n---\n", "\xff not UTF-8", "edited"])
def test_a_readme_that_somebody_wrote_or_edited_is_kept(
    run: HumanlineTrainer, card: str, tmp_path: Path, theirs: str, capsys
):
    there = (card + "\nA sentence.\n" if theirs == "edited" else theirs).encode("latin-1")
    (tmp_path / CARD).write_bytes(there)
    run.save_model(str(tmp_path))
    assert (tmp_path / CARD).read_bytes() == there
    assert f"{tmp_path / CARD} is not a card of this trainer, or was edited: kept" in capsys.readouterr().out


def test_an_earlier_card_of_this_trainer_is_replaced(run: HumanlineTrainer, card: str, tmp_path: Path):
    run.save_model(str(tmp_path))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run.args, "seed", 7)
        run.save_model(str(tmp_path))
    assert (tmp_path / CARD).read_text() != card
    assert "seed 7" in (tmp_path / CARD).read_text()


def test_trainer_s_own_card_is_this_one_with_the_tags_of_the_user(run: HumanlineTrainer, card: str):
    try:
        run.create_model_card(model_name="My model", tags=["mine"], license="mit")
        text = (run.run_dir / CARD).read_text()
        data = front(text)
        assert (data.license, data.tags) == ("mit", ["humanline", "dpo", "mine"])
        assert rows(text) == rows(card)
        assert "\n# My model\n" in text
    finally:
        run.create_model_card()
        assert (run.run_dir / CARD).read_text() == card


def test_an_adapter_has_this_card_and_not_peft_s(tmp_path: Path):
    peft = pytest.importorskip("peft")
    settings = peft.LoraConfig(r=2, target_modules=["v_proj", "q_proj"], task_type="CAUSAL_LM")
    model: Any = peft.get_peft_model(tiny_model(), settings)
    trainer = tiny_trainer(tmp_path, model=model, max_steps=1)
    trainer.train()
    trainer.save_model()
    card = (tmp_path / CARD).read_text()
    assert front(card).library_name == "peft"
    assert rows(card)["adapter"] == "LORA, r=2, lora_alpha=8, on q_proj, v_proj"
    assert f"peft {peft.__version__}" in rows(card)["versions"]
    model.save_pretrained(tmp_path / "by hand")
    assert (tmp_path / "by hand" / CARD).is_file()


def test_a_card_names_the_optimizer_that_was_given(tmp_path: Path):
    model = tiny_model()
    given = {"processing_class": tiny_tokenizer(), "optimizers": (torch.optim.SGD(model.parameters(), lr=0.1), None)}
    trainer = HumanlineTrainer(model, tiny_config(tmp_path, max_steps=1), records("dpo", 8), **given)
    trainer.train()
    said = rows(card_text(trainer))["optimizer"]
    assert said.startswith("SGD, given in memory, lr_scheduler_type=linear, warmup_steps=0, max_grad_norm=1,")


def test_card_and_summary_name_the_computation_that_the_launcher_chose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    trainer = tiny_trainer(tmp_path, max_steps=1)
    monkeypatch.setattr(type(trainer.accelerator), "mixed_precision", "bf16")  # accelerate launch --mixed_precision
    trainer.train()
    assert "float32 weights in bfloat16 computation" in capsys.readouterr().out
    assert rows(card_text(trainer))["optimizer"].endswith("computed in bfloat16")
