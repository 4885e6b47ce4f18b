"""Tokens of others inside a completion count neither in losses nor in metrics, with either head and for every loss."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from humanline_fused.cli import main
from humanline_fused.targets import shift_targets
from humanline_fused.training.data.batch import collate, num_loss_tokens
from humanline_fused.training.data.examples import fingerprint
from humanline_fused.training.data.plan import MicroBatch
from humanline_fused.training.data.prepare import prepare
from humanline_fused.training.objectives import find_objective
from tests.tiny_model import losses, tiny_tokenizer, tiny_trainer

ASK = [{"role": "user", "content": "w90"}]


def answer(call: str, found: str, said: str) -> list[dict[str, str]]:
    turns = (("assistant", call), ("system", found), ("assistant", said))
    return [{"role": role, "content": text} for role, text in turns]


def rows(objective: str, number: int = 4) -> list[dict[str, Any]]:
    """Conversations in which a turn of somebody else stands between two of the policy's."""
    good = [answer(f"w{i} w3", f"w{i + 50} w51 w52", f"w{i + 4}") for i in range(number)]
    bad = [answer(f"w{i + 9}", f"w{i + 60}", f"w{i + 8} w7") for i in range(number)]
    pairs = list(zip(good, bad, strict=True))
    match find_objective(objective).form.sides, find_objective(objective).form.has_rewards:
        case 2, _:
            return [{"prompt": ASK, "chosen": a, "rejected": b} for a, b in pairs]
        case _, True:
            return [{"prompt": ASK, "completions": [a, b], "rewards": [1.0, 0.0]} for a, b in pairs]
        case _:
            return [{"prompt": ASK, "completion": one, "label": i == 0} for pair in pairs for i, one in enumerate(pair)]


def test_a_batch_counts_the_policys_tokens_alone(objective: str):
    kind = find_objective(objective)
    examples = list(prepare(rows(objective), tiny_tokenizer(), kind, max_length=64).examples)
    everything = MicroBatch(tuple(range(len(examples))), (*range(1, len(examples)), 0))
    batch = collate(examples, everything, kind, pad_token_id=0, max_length=64)
    for part in batch.passes.values():
        _, loss_mask = shift_targets(part.input_ids, part.completion_mask)
        assert torch.equal(loss_mask.flatten().nonzero()[:, 0], part.rows)
        counted = str(tiny_tokenizer().decode(part.input_ids[part.completion_mask]))
        assert not re.search(r"w[56]\d|w90|<system>|<assistant>|<user>", counted)
    _, loss_mask = shift_targets(batch.input_ids, batch.completion_mask)
    assert sum(map(num_loss_tokens, examples)) == int(loss_mask.sum())


def test_the_masked_tokens_of_one_completion_are_these():
    (example,) = prepare(rows("dpo", 1), tiny_tokenizer(), find_objective("dpo"), max_length=64).examples
    tokens = tiny_tokenizer().convert_ids_to_tokens(example.completions[0].tolist())
    assert tokens == ["w0", "w3", "<eos>", "<system>", "w50", "w51", "w52", "<eos>", "<assistant>", "w4", "<eos>"]
    assert example.masks[0].tolist() == [True] * 3 + [False] * 6 + [True] * 2
    everything = prepare(rows("dpo", 1), tiny_tokenizer(), find_objective("dpo"), max_length=64, train_on="completion")
    assert everything.examples[0].masks == ()
    assert everything.examples[0].completions[0].tolist() == example.completions[0].tolist()
    assert fingerprint(everything.examples) != fingerprint([example])


def test_both_heads_train_on_the_same_tokens(tmp_path: Path, objective: str):
    data = rows(objective, 8)
    runs = {}
    for head in ("fused", "logits"):
        trainer = tiny_trainer(tmp_path / head, objective=objective, train_dataset=data, head=head, max_length=64)
        trainer.train()
        runs[head] = torch.tensor(losses(trainer), dtype=torch.float64)
    everything = tiny_trainer(
        tmp_path / "all", objective=objective, train_dataset=data, train_on="completion", max_length=64
    )
    everything.train()
    torch.testing.assert_close(runs["fused"].float(), runs["logits"].float())
    assert not torch.allclose(runs["fused"], torch.tensor(losses(everything), dtype=torch.float64), rtol=1e-3)


def test_a_run_says_how_much_is_masked_or_counted_and_strict_data_accept_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    settings: dict[str, Any] = {"train_dataset": rows("dpo", 8), "max_length": 64, "max_steps": 1}
    tiny_trainer(tmp_path / "a", strict_data=True, **settings).train()
    tokens = "tokens of completions that the policy did not write"
    share = r"80 of 160 \(50%\), e\.g\. dataset, example 0\n"
    assert re.search(
        rf"{tokens}: they do not count \(train_on=completion counts them\): {share}", capsys.readouterr().out
    )
    tiny_trainer(tmp_path / "b", train_on="completion", **settings).train()
    assert re.search(rf"{tokens}, and that count \(train_on=assistant masks them\): {share}", capsys.readouterr().out)


def test_the_page_shows_the_masked_tokens_as_not_scored(tmp_path: Path):
    settings: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1, "max_steps": 1}
    trainer = tiny_trainer(tmp_path, train_dataset=rows("dpo", 4), max_length=64, **settings)
    trainer.train()
    trainer.save_model(str(tmp_path / "start"))
    assert main(["show", str(tmp_path), "--example", "0", "--model", str(tmp_path / "start")]) == 0
    page = (tmp_path / "show-example-0.html").read_text(encoding="utf-8")
    grey = re.findall(r'<span class="t prompt"[^>]*>([^<]*)</span>', page)
    assert "w50" in "".join(grey)
    assert not {" w3", " w4"} & set(grey)
