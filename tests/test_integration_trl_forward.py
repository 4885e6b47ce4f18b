"""Forward passes in TRL's trainers: hidden states meet the head where a token counts, and prompts stand once."""

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)
from trl.trainer.utils import add_fused_lm_head

from humanline_fused import eager
from humanline_fused.integrations.trl import Humanline
from humanline_fused.integrations.trl.body import padded, shared_prompt
from humanline_fused.integrations.trl.forward import head_pass, trl_pass
from humanline_fused.integrations.trl.logged_logits import LoggedLogits
from humanline_fused.model.fused_head import score_in_forward_
from humanline_fused.softmax import Softmax
from tests.error_budget import assert_within_budget
from tests.tiny_model import losses, tiny_model
from tests.tiny_trl import TIGHT, adapted, exact_pass, logged, ours, run, weights

# Two pairs as TRL's collator pads them, [chosen, rejected]; the prompts are 5 6 7 8 9 and 4.
IDS = [[5, 6, 7, 8, 9, 10, 11], [4, 12, 13, 0, 0, 0, 0], [5, 6, 7, 8, 9, 14, 0], [4, 15, 0, 0, 0, 0, 0]]
PROMPT = [5, 1, 5, 1]
LENGTH = [7, 3, 6, 2]


def batch(**changes: Any) -> dict[str, Any]:
    """Return the inputs that TRL's loss gives a model."""
    ids, column = torch.tensor(IDS), torch.arange(7)
    there = column < torch.tensor(LENGTH)[:, None]
    labels = ids.where(there & (column >= torch.tensor(PROMPT)[:, None]), -100)
    inputs = {"input_ids": ids, "attention_mask": there.long(), "labels": labels}
    return inputs | {"use_cache": False, "fused_lm_head": True} | changes


def targets(inputs: dict[str, Any]) -> Tensor:
    return (inputs["labels"][:, 1:] != -100).flatten().nonzero()[:, 0]


# The body


def test_a_row_holds_each_prompt_once_and_no_padding_nor_last_token():
    inputs = batch()
    body = shared_prompt({name: inputs[name] for name in ("input_ids", "attention_mask")}, targets(inputs))
    row = body.inputs["input_ids"][0]
    assert sorted(row.tolist()) == [4, 5, 6, 7, 8, 9, 10, 12]
    positions = body.inputs["position_ids"][0]
    # The predecessors of 10 and 11, of 12 and 13, of 14, and of 15.
    assert row[body.source].tolist() == [9, 10, 4, 12, 9, 4]
    assert positions[body.source].tolist() == [4, 5, 0, 1, 4, 0]
    assert body.source[0] == body.source[4]


def test_padded_rows_score_a_target_from_the_token_before_it():
    inputs = batch()
    body = padded({"input_ids": inputs["input_ids"]}, targets(inputs))
    assert inputs["input_ids"].flatten()[body.source].tolist() == [9, 10, 4, 12, 9, 4]
    assert body.source.tolist() == [4, 5, 7, 8, 18, 21]


def test_a_row_needs_text_that_is_padded_on_the_right():
    inputs = batch()
    given = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    with pytest.raises(ValueError, match="the model gets pixel_values, token_type_ids with its tokens"):
        shared_prompt(given | {"token_type_ids": None, "pixel_values": None}, targets(inputs))
    left = given | {"attention_mask": given["attention_mask"].flip(1)}
    with pytest.raises(ValueError, match="padded on the left"):
        shared_prompt(left, targets(inputs))


# The head


def test_logged_values_of_a_row_of_logits():
    logits = torch.tensor([[1.0, 3.0, 3.0, -3.0], [0.0, 0.0, 0.0, 0.0], [2.0, -2.0, 0.0, 4.0]])
    logged_logits = LoggedLogits(eager, logits)
    ids = torch.tensor([1, 1, 3])
    logged_logits.score_rows(logits[:2], ids[:2], Softmax(), False)
    logged_logits.score_rows(logits[2:], ids[2:], Softmax(softcap=2.0), False)
    capped = 2 * (logits[2] / 2).tanh()
    assert logged_logits.mean.tolist() == pytest.approx([1.0, 0.0, capped.mean().item()])
    assert logged_logits.is_top1.tolist() == [True, False, True]  # the first of equal ones
    assert logged_logits.entropy[1].item() == pytest.approx(torch.tensor(4.0).log().item())


def capped_model() -> Any:
    """Return a Gemma 2 with sliding windows, which caps its logits."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = Gemma2Config(vocab_size=100, head_dim=16, num_key_value_heads=1, sliding_window=3, **sizes)
    config.final_logit_softcapping, config.attn_logit_softcapping = 2.0, None
    return Gemma2ForCausalLM(config)


FIELDS = ("log_probs", "entropy", "mean_logits", "is_top1")


@pytest.mark.parametrize("body_of", [padded, shared_prompt])
@pytest.mark.parametrize("make", [tiny_model, capped_model])
def test_outputs_and_gradients_are_trls(make: Any, body_of: Any):
    model = make()
    add_fused_lm_head(model, outputs=FIELDS)
    score_in_forward_(model)
    exact = make().double()
    exact.load_state_dict(model.state_dict())

    def graded(forward: Any, of: nn.Module) -> dict[str, Tensor]:
        of.zero_grad()
        outputs = forward(of)
        outputs.log_probs.square().sum().backward()
        gradients = {name: p.grad.clone() for name, p in of.named_parameters() if p.grad is not None}
        return {name: outputs[name].detach() for name in FIELDS} | gradients

    actual = graded(head_pass(body_of, batch()), model)
    plain = graded(trl_pass(batch()), model)
    oracle = graded(lambda of: exact_pass(of)(**batch()), exact)
    log_probs = oracle["log_probs"].abs().sum().item()
    assert torch.equal(actual.pop("is_top1"), oracle.pop("is_top1"))
    for name in actual:
        assert_within_budget(actual[name], plain[name], oracle[name], name, log_probs=log_probs, unit=log_probs)


def test_a_batch_without_a_target_has_zeros_and_a_gradient_of_zeros():
    model = tiny_model()
    score_in_forward_(model)
    for body_of in (padded, shared_prompt):
        outputs = head_pass(body_of, batch(labels=torch.full((4, 7), -100)))(model)
        outputs.log_probs.sum().backward()
        assert outputs.log_probs.tolist() == [[0.0] * 6] * 4
        assert not model.lm_head.weight.grad.any()


# Runs


def said(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Return the lines that trainers printed about their forward pass."""
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith("humanline: ")]


ONE_ROW = "humanline: one row without padding, each prompt once; head on the completions only"


@pytest.mark.parametrize(
    ("asked", "line"),
    [
        ({}, ONE_ROW),
        ({"head": "fused", "layout": "shared_prompt"}, ONE_ROW),
        ({"layout": "padded"}, "humanline: padded rows (layout='padded'), head on the completions only"),
        ({"head": "trl"}, "humanline: TRL's own forward pass (head='trl')"),
    ],
)
def test_a_run_says_once_which_forward_pass_it_uses(
    asked: dict[str, Any], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    trainer = run(ours("dpo", tmp_path, max_steps=2, humanline=Humanline(**TIGHT, **asked)))
    assert said(capsys) == [line]
    names = {"entropy", "logits/chosen", "mean_token_accuracy", "logps/chosen", "rewards/margins", "num_tokens"}
    assert names <= trainer.state.log_history[0].keys()


def test_a_lora_policy_with_its_second_adapter_has_rows_without_padding(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run(ours("kto", tmp_path, model=adapted(), max_steps=1, humanline=Humanline(head="fused", layout="shared_prompt")))
    assert said(capsys) == [ONE_ROW]


def counted(trainer: Any) -> list[int]:
    """Return a list to which each forward pass of policy and reference adds its tokens, from the second pass on."""
    tokens: list[int] = []
    for model in (trainer.model, trainer.ref_model):
        model.get_input_embeddings().register_forward_hook(lambda _, args, __: tokens.append(args[0].numel()))
    return tokens


def test_a_step_computes_each_prompt_once_and_no_padding(tmp_path: Path):
    words = [f"w{i}" for i in range(40)]

    def text(start: int, number: int) -> str:
        return " ".join(words[start : start + number])

    rows = [
        {"prompt": text(0, 6), "chosen": f" {text(20, 3)}", "rejected": f" {text(30, 9)}"},
        {"prompt": text(6, 12), "chosen": f" {text(20, 1)}", "rejected": f" {text(30, 4)}"},
    ]
    trainer = ours("dpo", tmp_path, rows=rows, max_steps=1, gradient_accumulation_steps=1)
    batch_of_pairs = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    trainer._compute_loss(trainer.model, batch_of_pairs, False)  # tests the model on some tokens
    tokens = counted(trainer)
    trainer._compute_loss(trainer.model, batch_of_pairs, False)
    # A completion's end-of-sequence token is scored, and needs no hidden state of its own.
    assert tokens == [6 + 3 + 9 + 12 + 1 + 4] * 2
    assert batch_of_pairs["input_ids"].shape == (4, 17)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_no_bit(reentrant: bool, tmp_path: Path):
    checkpointing = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": reentrant}}
    plain, saving = (
        run(ours("dpo", tmp_path / str(len(settings)), max_steps=2, humanline=Humanline(**TIGHT), **settings))
        for settings in ({}, checkpointing)
    )
    assert losses(saving) == losses(plain)
    assert all(torch.equal(weights(saving)[name], value) for name, value in weights(plain).items())


def test_under_autocast_the_first_log_ratios_are_exactly_zero(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    trainer = run(ours("dpo", tmp_path, max_steps=2, bf16=True))
    assert said(capsys) == [ONE_ROW]
    assert logged(trainer, "rewards/chosen")[0] == 0.0
    assert logged(trainer, "rewards/chosen")[1] != 0.0


# Where a model does not allow it


def bloom() -> Any:
    torch.manual_seed(0)
    dropout = {"hidden_dropout": 0.0, "attention_dropout": 0.0}
    return BloomForCausalLM(BloomConfig(vocab_size=100, hidden_size=32, n_layer=2, n_head=2, pad_token_id=0, **dropout))


def mixtral() -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    experts = {"num_local_experts": 2, "num_experts_per_tok": 1, "num_key_value_heads": 2, "router_aux_loss_coef": 0.1}
    return MixtralForCausalLM(MixtralConfig(vocab_size=100, pad_token_id=0, **sizes, **experts))


class OtherHead(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input)


def with_another_head() -> Any:
    model = tiny_model()
    head = OtherHead(32, 100, bias=False)
    head.weight = model.lm_head.weight
    model.lm_head = head
    return model


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (bloom, r"humanline: padded rows \(.+\), head on the completions only"),
        (mixtral, r"humanline: TRL's own forward pass \(the loss has the router's auxiliary loss\)"),
        (with_another_head, r"humanline: TRL's own forward pass \(expected a head that is a plain nn.Linear, got .*\)"),
    ],
)
def test_a_model_that_does_not_allow_it_is_trained_the_other_way_with_a_reason(
    make: Any, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    trainer = run(ours("dpo", tmp_path, model=make(), max_steps=2, humanline=Humanline(**TIGHT)))
    (printed,) = said(capsys)
    assert re.fullmatch(line, printed)
    assert losses(trainer)[0] == pytest.approx(math.log(2), rel=0.2)


def test_a_way_set_by_hand_that_a_model_does_not_allow_is_an_error(tmp_path: Path):
    with pytest.raises(
        ValueError, match=r"head='fused': expected a head .* nn.Linear, got .*. Use head='auto' or 'trl'"
    ):
        ours("dpo", tmp_path, model=with_another_head(), humanline=Humanline(head="fused"))
    trainer = ours("dpo", tmp_path, model=bloom(), humanline=Humanline(layout="shared_prompt"))
    with pytest.raises(ValueError, match=r"layout='shared_prompt': .+. Use layout='auto' or 'padded'"):
        trainer.train()


def test_a_batch_with_other_inputs_than_text_has_padded_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    trainer = ours("dpo", tmp_path)
    collate = trainer.data_collator

    def with_positions(rows: list[Any]) -> dict[str, Any]:
        made = collate(rows)
        return made | {"position_ids": torch.arange(made["input_ids"].shape[1])[None]}

    trainer.data_collator = with_positions
    trainer.train()
    assert said(capsys) == [
        ONE_ROW,
        "humanline: a batch has padded rows (the model gets position_ids with its tokens)",
    ]
