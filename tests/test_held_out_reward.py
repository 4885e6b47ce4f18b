"""The reward of the policy's own answers to the held-out prompts."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from humanline_fused.trained.stored_model import find_model
from humanline_fused.training import HumanlineTrainer
from humanline_fused.training.objectives.metrics import less_is_better
from humanline_fused.training.online import held_out_reward, sampler
from humanline_fused.training.online.reward import RolloutError
from humanline_fused.training.run.checkpoint import newest_complete
from humanline_fused.training.run.whole_run import train_and_export
from tests.tiny_model import WORDS, losses, records, tiny_config, tiny_model, tiny_tokenizer

HELD_OUT = [{**row, "worth": float(i)} for i, row in enumerate(records("dpo", 4, seed=1))]


def first_word(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    """Reward the place of an answer's first word in the vocabulary, which differs between most answers."""
    return [float(WORDS.index(text.split()[0])) if text.split()[:1] != [] else -1.0 for text in completions]


def trainer_of(output_dir: Path, function: Any = first_word, **settings: Any) -> HumanlineTrainer:
    given = {"eval_dataset": HELD_OUT, "eval_strategy": "steps", "eval_steps": 2, "max_completion_length": 4} | settings
    built = {name: given.pop(name) for name in ("eval_dataset", "train_dataset") if name in given}
    return HumanlineTrainer(
        tiny_model(),
        tiny_config(output_dir, **({"max_steps": 4} | given)),
        processing_class=tiny_tokenizer(),
        reward_function=function,
        **{"train_dataset": records("dpo", 10)} | built,
    )


def logged(folder: Path, name: str) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line[name]) for line in lines if name in line]


def test_the_mean_reward_of_one_answer_to_each_prompt_is_logged_from_the_start(tmp_path: Path) -> None:
    def worth(prompts: list[str], completions: list[str], worth: list[float], **columns: Any) -> list[float]:
        calls.append(prompts)
        assert len(prompts) == len(completions) == len(worth)
        return worth

    calls: list[list[str]] = []
    trainer_of(tmp_path, worth).train()
    assert logged(tmp_path, "eval_reward") == [(0, 1.5), (2, 1.5), (4, 1.5)]  # of 0, 1, 2, 3
    assert calls == [[row["prompt"] for row in HELD_OUT]] * 3


def test_a_prompt_is_answered_once_for_each_set_of_its_other_columns(tmp_path: Path) -> None:
    other_pair, other_worth = HELD_OUT[0] | {"chosen": " w1 w2"}, HELD_OUT[0] | {"worth": 99.0}
    answers = trainer_of(tmp_path, eval_dataset=[*HELD_OUT, other_pair, other_worth]).answers
    assert answers.places == [0, 1, 2, 3, 5]
    assert answers.summary() == f"an evaluation answers 5 prompts of 6 rows, scored by {__name__}:first_word"
    renamed = [{**row, "good": row["chosen"], "bad": row["rejected"]} for row in (HELD_OUT[0], other_pair)]
    pairs = [{name: value for name, value in row.items() if name not in ("chosen", "rejected")} for row in renamed]
    train = [{"prompt": row["prompt"], "good": row["chosen"], "bad": row["rejected"]} for row in records("dpo", 10)]
    settings = {"columns": {"chosen": "good", "rejected": "bad"}, "train_dataset": train}
    assert (
        trainer_of(tmp_path, eval_dataset=pairs, **settings)
        .answers.summary()
        .startswith("an evaluation answers 1 prompt of 2 rows, ")
    )


def test_an_evaluation_before_the_first_step_is_the_first_answer(tmp_path: Path) -> None:
    trainer_of(tmp_path, eval_on_start=True).train()
    assert [step for step, _ in logged(tmp_path, "eval_reward")] == [0, 2, 4]


def test_the_answers_are_those_of_the_policy_of_the_step(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, learning_rate=0.3)
    before = trainer.answers.measure(trainer.model)["reward"]
    trainer.train()
    after = trainer.answers.measure(trainer.model)["reward"]
    rewards = [reward for _, reward in logged(tmp_path, "eval_reward")]
    assert (rewards[0], rewards[-1]) == (before, after)
    assert before != after


def test_every_process_answers_its_share_of_the_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def worth(prompts: list[str], completions: list[str], worth: list[float], **columns: Any) -> list[float]:
        return worth

    monkeypatch.setattr(held_out_reward, "gathered", lambda outcome: [outcome])
    trainer = trainer_of(tmp_path, worth)
    draws = trainer.answers.sampler
    shares = [held_out_reward.HeldOutReward(draws, range(4), 0, rank=rank, world_size=2) for rank in range(2)]
    assert [share.measure(trainer.model)["reward"] for share in shares] == [1.0, 2.0]  # of 0 and 2, and of 1 and 3


def test_the_share_of_answers_cut_before_their_end_is_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_of(tmp_path)
    end, word = tiny_tokenizer().eos_token_id, 7
    drawn = [[torch.tensor(ids)] for ids in ([word, end], [word] * 4, [end], [word, word, end])]
    monkeypatch.setattr(sampler, "sample", lambda *args: drawn)
    assert trainer.answers.measure(trainer.model)["completions/clipped_ratio"] == 0.25
    assert less_is_better("eval_completions/clipped_ratio")


def test_answering_changes_no_bit_of_the_training(tmp_path: Path) -> None:
    answered, plain = trainer_of(tmp_path / "a"), trainer_of(tmp_path / "b", None, max_completion_length=256)
    answered.train()
    plain.train()
    assert losses(answered) == losses(plain)
    assert logged(tmp_path / "b", "eval_reward") == []
    assert logged(tmp_path / "a", "eval_loss") == logged(tmp_path / "b", "eval_loss")


def test_a_reward_that_fails_in_a_dry_run_is_told_the_columns_of_the_held_out_data(tmp_path: Path) -> None:
    said = (
        r"eval_dataset: expected a reward for an answer to each prompt, with its columns chosen, rejected, worth "
        r"\(eval_answers=False draws no answers\): reward function .* raised KeyError: 'answer'"
    )
    with pytest.raises(RolloutError, match=said):
        trainer_of(tmp_path, lambda **columns: columns["answer"], dry_run=True).train()


def test_a_dry_run_answers_one_batch_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def counted(**given: Any) -> list[float]:
        calls.append(len(given["prompts"]))
        return first_word(**given)

    calls: list[int] = []
    trainer_of(tmp_path, counted, dry_run=True, rollout_batch_size=3).train()
    assert calls == [3]
    assert "an evaluation answers 4 prompts, this dry run 3 of them, scored by" in capsys.readouterr().out


def test_a_reward_that_fails_later_keeps_the_run(tmp_path: Path) -> None:
    def fails_late(**given: Any) -> list[float]:
        calls.append(1)
        return first_word(**given) if len(calls) < 3 else []

    calls: list[int] = []
    with pytest.raises(RolloutError, match=r"expected 4 numbers, got 0\. The run up to step 4 is kept"):
        trainer_of(tmp_path, fails_late).train()
    assert newest_complete(tmp_path) == tmp_path / "checkpoint-4"


def test_held_out_data_without_a_prompt_column_are_refused_before_the_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("humanline_fused.training.trainer.load_policy", None)
    pairs = [{"chosen": "w1 w2 w3 w4 w5", "rejected": "w1 w2 w3 w6 w7"}]
    said = "dataset, example 0: this looks like preference .*; an evaluation's answer .eval_answers=True. needs prompt"
    with pytest.raises(ValueError, match=said):
        trainer_of(tmp_path, eval_dataset=pairs)


def test_after_the_last_step_a_reward_that_fails_leaves_the_saved_model(tmp_path: Path) -> None:
    def fails_late(**given: Any) -> list[float]:
        calls.append(1)
        return first_word(**given) if len(calls) < 2 else []

    calls: list[int] = []
    trainer = trainer_of(tmp_path, fails_late, eval_strategy="no", save_strategy="no", max_steps=1)
    saved = re.escape(f"The model is saved to {tmp_path}")
    with pytest.raises(RolloutError, match=rf"expected 4 numbers, got 0\. {saved}"):
        train_and_export(trainer)
    assert find_model(str(tmp_path)).place == str(tmp_path)


def test_rounds_are_answered_too(tmp_path: Path) -> None:
    rounds = {"rollout_every": 2, "num_generations": 2, "reference": "copy", "objective": "grpo"}
    held_out = records("grpo", 8, seed=1)
    trainer_of(tmp_path, eval_dataset=held_out, **rounds).train()
    assert [step for step, _ in logged(tmp_path, "eval_reward")] == [0, 2, 4]


def test_rounds_may_have_held_out_data_whose_prompts_are_not_answered(tmp_path: Path) -> None:
    rounds = {"rollout_every": 2, "num_generations": 2, "reference": "copy", "objective": "grpo"}
    trainer = trainer_of(tmp_path, eval_dataset=records("grpo", 8, seed=1), eval_answers=False, **rounds)
    assert trainer.answers is None
    assert trainer.eval_examples


def test_the_best_model_may_be_the_one_of_the_best_answers(tmp_path: Path) -> None:
    best = {"metric_for_best_model": "reward", "save_strategy": "best"}
    trainer = trainer_of(tmp_path, **best)
    trainer.train()
    assert trainer.state.best_metric == max(reward for step, reward in logged(tmp_path, "eval_reward") if step)


@pytest.mark.parametrize(
    ("function", "settings", "said"),
    [
        (first_word, {"eval_dataset": None}, "reward_function: expected None without rollout_every and without an"),
        (None, {"eval_dataset": None, "reward": "math:sqrt"}, r"reward: expected None .*, got 'math:sqrt'"),
        (first_word, {"eval_answers": False}, r"expected None without .* an evaluation answers \(eval_answers\), got"),
        (None, {"eval_answers": False, "max_completion_length": 256}, "eval_answers: expected True without a reward"),
        (first_word, {"reward": "math:sqrt"}, "reward: expected one reward function, .* got both"),
        (None, {}, r"max_completion_length: expected 256 without a reward function \(reward\), got 4"),
        (first_word, {"temperature": 0.5}, "temperature: expected 1.0 without rollout_every, got 0.5"),
        (first_word, {"max_completion_length": 0}, "max_completion_length: expected an integer >= 1, got 0"),
    ],
)
def test_settings_of_answers_that_nobody_gives_are_refused(
    tmp_path: Path, function: Any, settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        trainer_of(tmp_path, function, eval_strategy="no", **settings)


def test_the_longest_sequence_may_be_an_answer(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, max_completion_length=100, max_length=128)
    longest = max(len(row["prompt"].split()) for row in HELD_OUT)
    assert trainer.checked.longest == longest + 100
    assert "64 positions" in str(trainer.checked.warning)
