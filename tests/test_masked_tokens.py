"""Tokens of others inside a completion count neither in losses nor in metrics, with either head and for every loss."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from humanline_fused.cli import main
from humanline_fused.training import HumanlineTrainer
from humanline_fused.training.data.batch import collate, num_loss_tokens
from humanline_fused.training.data.examples import fingerprint
from humanline_fused.training.data.findings import NO_STOP
from humanline_fused.training.data.plan import MicroBatch
from humanline_fused.training.data.prepare import prepare
from humanline_fused.training.objectives import find_objective
from tests.tiny_model import losses, tiny_config, tiny_model, tiny_tokenizer, tiny_trainer

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
        assert torch.equal(part.input_ids.flatten()[part.source + 1], part.target_ids[0])
        counted = str(tiny_tokenizer().decode(part.target_ids[0]))
        assert not re.search(r"w[56]\d|w90|<system>|<assistant>|<user>", counted)
    assert sum(map(num_loss_tokens, examples)) == batch.target_ids.shape[1]


def test_the_masked_tokens_of_one_completion_are_these():
    (example,) = prepare(rows("dpo", 1), tiny_tokenizer(), find_objective("dpo"), max_length=64).examples
    tokens = tiny_tokenizer().convert_ids_to_tokens(example.completions[0].tolist())
    assert tokens == ["w0", "w3", "<eos>", "<system>", "w50", "w51", "w52", "<eos>", "<assistant>", "w4", "<eos>"]
    assert example.masks[0].tolist() == [True] * 3 + [False] * 6 + [True] * 2
    everything = prepare(rows("dpo", 1), tiny_tokenizer(), find_objective("dpo"), max_length=64, train_on="completion")
    assert everything.examples[0].masks == ()
    assert everything.examples[0].completions[0].tolist() == example.completions[0].tolist()
    assert fingerprint(everything.examples) != fingerprint([example])


def test_a_mask_is_cut_with_its_completion():
    def prepared(max_length: int) -> Any:
        return prepare(rows("dpo", 1), tiny_tokenizer(), find_objective("dpo"), max_length=max_length).examples[0]

    whole, cut = prepared(64), prepared(len(prepared(64).prompt_ids) + 6)
    assert [len(ids) for ids in cut.completions] == [len(mask) for mask in cut.masks] == [6, 6]
    for mask, longer in zip(cut.masks, whole.masks, strict=True):
        assert mask.tolist() == longer[:6].tolist()


def test_examples_before_and_after_a_masked_one_count_as_a_whole():
    masked = rows("dpo", 1)
    unmasked = [{"prompt": ASK, **{side: answer("w1", "", "")[:1] for side in ("chosen", "rejected")}}]
    examples = prepare(unmasked + masked + unmasked, tiny_tokenizer(), find_objective("dpo"), max_length=64).examples
    alone = prepare(masked, tiny_tokenizer(), find_objective("dpo"), max_length=64).examples[0]
    assert examples[0].masks == examples[2].masks == ()
    assert [mask.tolist() for mask in examples[1].masks] == [mask.tolist() for mask in alone.masks]


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


def test_a_run_with_strict_data_refuses_a_loss_in_training_and_in_held_out_data(tmp_path: Path):
    good = [{"prompt": "w1", "chosen": f" w{i}", "rejected": " w9"} for i in range(8)]
    equal = [*good, {"prompt": "w1", "chosen": " w9", "rejected": " w9"}]
    for given in ({"train_dataset": equal}, {"train_dataset": good, "eval_dataset": equal}):
        tiny_trainer(tmp_path / "a", **given)
        with pytest.raises(ValueError, match=r"^strict_data: .*got pairs whose tokens that count are equal: 1"):
            tiny_trainer(tmp_path / "a", strict_data=True, **given)
    tiny_trainer(tmp_path / "a", strict_data=True, train_dataset=good, eval_dataset=good)


def test_a_run_knows_the_stop_tokens_of_its_model(tmp_path: Path):
    tokenizer, model = tiny_tokenizer(), tiny_model()
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] + ' ' + m['content'] + ' w9 ' }}{% endfor %}"
    data, config = rows("dpo", 4), tiny_config(tmp_path, max_length=64)
    for end, number in ((1, 8), ([1, tokenizer.convert_tokens_to_ids("w9")], 0)):
        model.generation_config.eos_token_id = end
        trainer = HumanlineTrainer(model, config, processing_class=tokenizer, train_dataset=data)
        assert trainer.train_data.findings.count(NO_STOP) == number


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
