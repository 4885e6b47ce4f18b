"""Summary, checks and refusals of a run before its first step."""

import logging
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaForCausalLM, PreTrainedTokenizerFast

from humanline_fused.model.noise import refuse_noise
from humanline_fused.training import HumanlineTrainer
from humanline_fused.training.initial_scores import INITIAL_SCORES
from humanline_fused.training.run.manifest import MANIFEST, seal
from humanline_fused.training.run.resumable import IDENTITY
from humanline_fused.training.run.summary import as_bytes, bytes_of
from humanline_fused.training.run.untrue_warnings import without_untrue_warnings
from humanline_fused.training.start import identify, pad_token_id_of
from tests.batches import labelled
from tests.tiny_model import records, tiny_config, tiny_model, tiny_tokenizer, tiny_trainer, trained

FLOATS = 100 * 32 + (4 * 32 * 32 + 3 * 32 * 48 + 2 * 32) + 32 + 32 * 100
"""Size of the tiny model: embedding, a layer (attention, MLP, norms), last norm, head; without the rotary buffer."""


FOLLOWS = "first sync at step 0; loss and rewards/* stay flat, as it follows the policy"


@pytest.mark.parametrize(
    ("settings", "reference", "forwards", "sync"),
    [
        ({"sync_every": 4}, "look-ahead k=4, 59.4 KiB of weights saved", 2, FOLLOWS),
        ({"objective": "kto"}, "look-ahead k=1, 59.4 KiB of weights saved", 3, FOLLOWS),
        (
            {"objective": "kto", "train_dataset": labelled(20, 4)},
            "look-ahead k=1, 59.4 KiB of weights saved",
            2,
            FOLLOWS,
        ),
        (
            {"objective": "kto", "layout": "padded"},
            "look-ahead k=1, 59.4 KiB of weights saved",
            4,
            FOLLOWS,
        ),
        ({"reference": "copy"}, "copy k=1, 59.4 KiB of weights more", 2, FOLLOWS),
        ({"reference": "frozen"}, "frozen, 59.4 KiB of weights more", 2, "no sync"),
    ],
)
def test_a_line_states_how_the_model_is_scored_and_the_cost_of_its_reference(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    settings: dict[str, Any],
    reference: str,
    forwards: int,
    sync: str,
):
    trained(tmp_path, max_steps=1, **settings)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == f"reference: {reference}; forwards per micro-batch {forwards}; {sync}"
    assert re.search(r"; head check: max \|Δlogp\| \de[-+]\d\d; layout: ", lines[3])


def test_with_the_models_own_logits_there_is_no_head_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    trained(tmp_path, max_steps=1, head="logits")
    assert "; head: the model's own logits; layout: " in capsys.readouterr().out.splitlines()[3]


def test_the_summary_has_six_lines_and_this_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rows = [*records("dpo", 12), {"prompt": " ".join(["w1"] * 40), "chosen": " w2", "rejected": " w3"}]
    held_out = {"eval_dataset": records("dpo", 4, 5), "eval_strategy": "steps", "eval_steps": 2}
    settings = {"gradient_accumulation_steps": 3, "loss_type": "ipo", "save_strategy": "steps", "save_steps": 4}
    trained(tmp_path, train_dataset=rows, layout="padded", logging_steps=2, **settings, **held_out)
    lines = capsys.readouterr().out.splitlines()[:6]
    lines[3] = re.sub(r"max \|Δlogp\| \de[-+]\d\d", "max |Δlogp| ?", lines[3])
    lines[0] = re.sub(r"\(.*\)", "(?)", lines[0])
    assert lines == [
        "dpo: clamp [-1.5, 1.5] nats, loss_type=ipo, beta=0.5, computed by eager (?)",
        "reference: look-ahead k=1, 59.4 KiB of weights saved; forwards per micro-batch 2; " + FOLLOWS,
        "batches: 1 process (cpu, torch) x micro-batch 2 x accumulation 3 = global batch 6; 6 steps, 3 epochs of 2",
        "model: LlamaForCausalLM; float32 weights; attention sdpa; head check: max |Δlogp| ?; "
        "layout: padded rows (padded: asked for by name)",
        "data: 12 examples; held out: 4 examples; dropped examples (prompt >= max_length): 1, e.g. dataset, example 12",
        f"writes to {tmp_path}: a log line every 2 steps, a checkpoint every 4 steps, an evaluation every 2 steps",
    ]


def test_a_resumed_run_says_from_which_step_and_a_longer_one_how_many_epochs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    trained(tmp_path, max_steps=2, reference="copy", save_strategy="steps", save_steps=2)
    capsys.readouterr()
    again = {"reference": "copy", "save_strategy": "epoch", "bf16": True, "resume_from_checkpoint": "auto"}
    trained(tmp_path, max_steps=8, **again)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"resumed from {tmp_path / 'checkpoint-2'}, step 2"
    assert lines[1].startswith("other settings than before: ")
    assert lines[4].endswith("accumulation 1 = global batch 2; 8 steps, from step 2, 1.6 epochs of 5")
    assert "float32 weights in bfloat16 computation; attention sdpa;" in lines[5]
    assert lines[7].endswith("a log line every step, a checkpoint every epoch, no evaluation in training")


def test_the_summary_is_wrapped_to_a_terminal_and_not_to_a_pipe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    trained(tmp_path / "pipe", max_steps=1, dry_run=True)
    whole = capsys.readouterr().out.splitlines()
    monkeypatch.setenv("COLUMNS", "70")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    trained(tmp_path / "pipe", max_steps=1, dry_run=True)
    lines = capsys.readouterr().out.splitlines()
    names = str(tmp_path / "pipe")
    assert max(len(line) for line in lines if names not in line) <= 70
    joined = " ".join(line.strip() for line in lines)
    assert joined == " ".join(whole)
    assert sum(not line.startswith("  ") for line in lines) == len(whole) == 6


def weights_of_second(model: nn.Module) -> int:
    return bytes_of([*model.parameters(), *model.buffers()])


def test_the_bytes_of_a_second_model_count_a_shared_tensor_once():
    rotary = 2 * 8  # inverse frequencies, and their original copy
    assert weights_of_second(tiny_model()) == 4 * (FLOATS + rotary)
    assert weights_of_second(tiny_model(tie_word_embeddings=True)) == 4 * (FLOATS - 3200 + rotary)
    assert as_bytes(4 * (FLOATS + rotary)) == "59.4 KiB"


@pytest.mark.parametrize("strategy", ["steps", "epoch"])
def test_a_dry_run_prints_the_summary_takes_no_step_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], strategy: str
):
    held_out = {"eval_dataset": records("dpo", 4, 5), "eval_strategy": strategy, "eval_steps": 1, "eval_on_start": True}
    held_out |= {"save_strategy": strategy, "save_steps": 1, "report_to": "tensorboard", "push_to_hub": True}
    trainer = trained(tmp_path / "run", dry_run=True, hub_strategy="end", **held_out)
    assert trainer.state.global_step == 0
    assert all(torch.equal(a, b) for a, b in zip(trainer.model.parameters(), tiny_model().parameters(), strict=True))
    assert not (tmp_path / "run").exists()
    *lines, last = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["dpo", "reference", "batches", "model", "data"]
    assert last == f"dry run: nothing was trained, and nothing is written to {tmp_path / 'run'}"


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
    (tmp_path / "mine" / "metrics.jsonl").unlink()  # else the folder has a finished run
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


# Noise in the training forward


def noisy(kind: str) -> LlamaForCausalLM:
    """Return a model with noise that no setting and no attribute names."""
    model = tiny_model()
    inside: Any = model.model
    if kind == "functional dropout":
        inside.layers[-1].mlp.register_forward_hook(
            lambda module, _, out: nn.functional.dropout(out, 0.1, module.training)
        )
    elif kind == "jitter":
        inside.layers[0].mlp.register_forward_pre_hook(
            lambda module, given: (given[0] * (1 + 1e-5 * module.training * torch.randn(())),)
        )
    elif kind == "another forward":
        inside.norm.register_forward_hook(lambda module, _, out: out * (1 + 0.01 * module.training))
    return model


@pytest.mark.parametrize("kind", ["functional dropout", "jitter", "another forward"])
def test_noise_of_the_model_in_the_training_forward_is_refused(tmp_path: Path, kind: str):
    with pytest.raises(ValueError, match=r"expected a policy whose training forward computes what its evaluation does"):
        trained(tmp_path, model=noisy(kind), dry_run=True)
    assert trained(tmp_path, model=noisy(kind), dry_run=True, clamp=False).begun


def test_dropout_that_is_left_on_is_refused_by_name_before_anything_is_written(tmp_path: Path):
    dropping = {"disable_dropout": False, "model": tiny_model(attention_dropout=0.1)}
    with pytest.raises(ValueError, match=r"disable_dropout: expected True, .* got dropout 0\.1: its noise"):
        tiny_trainer(tmp_path / "run", **dropping)
    assert not (tmp_path / "run").exists()
    assert trained(tmp_path / "run", max_steps=1, clamp=False, **dropping).state.global_step == 1


def test_noise_on_the_embedding_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"neftune_noise_alpha: expected it to be off \(its noise .*\), got 5"):
        tiny_config(tmp_path, neftune_noise_alpha=5.0)


def test_the_check_for_noise_leaves_the_random_numbers_as_they_were():
    model = noisy("functional dropout")
    state = torch.get_rng_state()
    with pytest.raises(ValueError, match="training forward"):
        refuse_noise(model, model, torch.arange(20)[None])
    assert torch.equal(torch.get_rng_state(), state)


# Tokens


def padded_outside(vocabulary: int = 100) -> PreTrainedTokenizerFast:
    """Return the tiny tokenizer with a padding token that the model has no row for."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert tokenizer.pad_token_id == vocabulary
    return tokenizer


def trained_with(tokenizer: PreTrainedTokenizerFast, output_dir: Path, **settings: Any) -> HumanlineTrainer:
    config = tiny_config(output_dir, max_steps=3, **settings)
    trainer = HumanlineTrainer(tiny_model(), config, records(config.objective, 10), processing_class=tokenizer)
    trainer.train()
    return trainer


@pytest.mark.parametrize("head", ["fused", "logits"])
def test_a_pad_token_without_a_row_is_masked_anyway_and_changes_no_bit(tmp_path: Path, head: str):
    usual = trained_with(tiny_tokenizer(), tmp_path / "usual", head=head)
    outside = trained_with(padded_outside(), tmp_path / "outside", head=head)
    assert (usual.pad_token_id, outside.pad_token_id) == (0, 1)  # the end of sequence serves
    assert weights_of(outside) == weights_of(usual)


def test_without_a_pad_token_the_end_of_sequence_pads_and_without_both_token_0():
    tokenizer, model = tiny_tokenizer(), tiny_model()
    assert pad_token_id_of(tokenizer, model) == 0
    tokenizer.pad_token = None
    assert pad_token_id_of(tokenizer, model) == 1
    tokenizer.eos_token = None
    assert pad_token_id_of(tokenizer, model) == 0


def test_the_model_saved_with_a_pad_token_outside_loads(tmp_path: Path):
    trained_with(padded_outside(), tmp_path, save_strategy="steps", save_steps=3).save_model()
    for folder in (tmp_path, tmp_path / "checkpoint-3"):
        config = AutoModelForCausalLM.from_pretrained(folder).config
        assert config.pad_token_id == tiny_model().config.pad_token_id


def number_of_words(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    return [float(len(completion.split())) for completion in completions]


def test_rounds_sample_with_a_pad_token_outside(tmp_path: Path):
    rounds = {"reference": "copy", "rollout_every": 1, "num_generations": 2, "max_completion_length": 4}
    reward = {"reward": "tests.test_start:number_of_words"}
    runs = [
        trained_with(tokenizer, tmp_path / str(i), objective="grpo", **rounds, **reward)
        for i, tokenizer in enumerate((tiny_tokenizer(), padded_outside()))
    ]
    assert weights_of(runs[0]) == weights_of(runs[1])


def test_a_token_of_the_data_without_a_row_is_named_with_its_text_and_place(tmp_path: Path):
    tokenizer, rows = tiny_tokenizer(), records("dpo", 5)
    tokenizer.add_tokens(["[NEW]"])
    rows[3]["rejected"] += " [NEW]"
    said = (
        r"held-out example 3: expected token ids below 100, the rows of the model's embedding, got token '\[NEW\]' "
        r"\(id 100\): use the model's own tokenizer, or .*resize_token_embeddings"
    )
    with pytest.raises(ValueError, match=said):
        HumanlineTrainer(
            tiny_model(), tiny_config(tmp_path), records("dpo", 5), eval_dataset=rows, processing_class=tokenizer
        )


# Warnings of transformers


def test_no_warning_says_that_data_or_a_mask_are_missing_and_others_are_kept(tmp_path: Path):
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32}
    data = {"eval_dataset": records("dpo", 4, 5), "eval_strategy": "steps", "eval_steps": 1}
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    try:
        for dry_run in (True, False):
            model = GPT2LMHeadModel(GPT2Config(vocab_size=100, pad_token_id=0, **sizes))
            trainer = tiny_trainer(tmp_path, model=model, max_steps=1, dry_run=dry_run, **data)
            logging.getLogger("transformers.trainer").warning("another one")
            trainer.train()
        trainer.evaluate()
        with without_untrue_warnings():
            logging.getLogger("transformers.trainer").warning("within")
        logging.getLogger("transformers.modeling_utils").warning("We strongly recommend passing in an `attention_mask`")
    finally:
        logger.removeHandler(handler)
    assert not [line for line in said if "seems not to be a single sample" in line]
    assert [line for line in said if "attention_mask" in line] == said[-1:]
    assert said.count("another one") == 2
    assert "within" in said


# A compiled model


def test_a_compiled_model_trains_to_the_same_bits(tmp_path: Path):
    """dynamo's own backend captures the graphs and runs them unchanged.

    Padded rows, each shape by itself: tests/test_tree_attention.py compiles shared prompts and any shape, which takes
    dynamo more than twice as long.
    """
    compiled: dict[str, Any] = {"torch_compile": True, "torch_compile_backend": "eager"}
    small: dict[str, Any] = {"layout": "padded", "max_steps": 1}
    with torch._dynamo.config.patch(automatic_dynamic_shapes=False):
        runs = [trained(tmp_path / str(i), **small, **settings) for i, settings in enumerate(({}, compiled))]
    assert isinstance(runs[1].model_wrapped, torch._dynamo.OptimizedModule)
    assert weights_of(runs[0]) == weights_of(runs[1])


def weights_of(trainer: HumanlineTrainer) -> list[Any]:
    model = getattr(trainer.model, "_orig_mod", trainer.model)
    assert isinstance(model, nn.Module)
    return [parameter.tolist() for parameter in model.parameters()]
