"""The part of the data that is held out by default: whole prompts, said, and part of what a run is resumed with."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from humanline_fused.looking.stored_run import examples_of, open_run
from humanline_fused.training.data.examples import fingerprint
from humanline_fused.training.data.held_out import held_out_places, split
from humanline_fused.training.data.prepare import prepare
from humanline_fused.training.data.store import StoredExamples
from humanline_fused.training.objectives import find_objective
from tests.tiny_model import losses, records, tiny_config, tiny_tokenizer, tiny_trainer, trained


def prepared(rows: list[dict[str, Any]], objective: str = "dpo", tokenizer: Any = None) -> StoredExamples:
    return prepare(rows, tokenizer or tiny_tokenizer(), find_objective(objective), max_length=32).examples


def prompts(examples: Any) -> set[tuple[int, ...]]:
    return {tuple(example.prompt_ids.tolist()) for example in examples}


# The split


@pytest.mark.parametrize(
    "settings",
    [
        {"eval_strategy": "steps", "eval_steps": 2},
        {"eval_strategy": "steps", "eval_steps": 2, "eval_fraction": 0},
        {"eval_on_start": True, "eval_fraction": 0},
    ],
    ids=["too few", "none asked for", "at the start"],
)
def test_an_evaluation_in_training_without_held_out_data_is_refused_with_the_ways_to_have_some(
    tmp_path: Path, settings: dict[str, Any]
):
    name = next(iter(settings))
    off = "false" if name == "eval_on_start" else "no"
    said = f"{name}: expected an eval_dataset, an eval_fraction .*or {off}, got none of them"
    with pytest.raises(ValueError, match=said):
        tiny_trainer(tmp_path, num_examples=40, **settings)


def test_whole_prompts_are_held_out_in_the_order_of_their_hashes() -> None:
    keys = np.array([5, -2, 5, 8, -2, 9, 8, 8])
    assert held_out_places(keys, 0.25).tolist() == [1, 4]
    assert held_out_places(keys, 0.5).tolist() == [0, 1, 2, 4]


def test_a_prompt_with_more_examples_than_are_missing_is_passed_over() -> None:
    assert held_out_places(np.array([1, 1, 1, 2, 3, 4]), 0.34).tolist() == [3, 4]
    assert held_out_places(np.array([1, 1, 1]), 0.5).tolist() == []


@pytest.mark.parametrize("objective", ["dpo", "kto", "grpo"])
def test_the_parts_have_every_example_once_and_no_prompt_in_common(objective: str) -> None:
    rows = [row for row in records(objective, 40) for _ in range(2)]
    whole = prepared(rows, objective)
    train, held_out = split(whole, 0.25)
    assert len(train) + len(held_out) == len(whole)
    assert 0 < len(held_out) <= 0.25 * len(whole)
    assert not prompts(train) & prompts(held_out)
    places = held_out_places(whole.prompts, 0.25).tolist()
    for part, ids in ((held_out, places), (train, [i for i in range(len(whole)) if i not in places])):
        assert fingerprint(part) == fingerprint([whole[i] for i in ids])


def test_a_prompt_whose_last_token_merges_with_a_completion_is_still_one_prompt() -> None:
    """The pairs of the prompt "w1 w2" begin at different tokens, as of a tokenizer that merges across the border."""
    rows = [{"prompt": "w1 w2", "chosen": text, "rejected": " w3"} for text in ("w9", " w9", " w8", "w8")]
    whole = prepared(rows)
    assert len(prompts(whole)) == 2
    assert len(set(whole.prompts.tolist())) == 1


def test_the_same_prompts_are_held_out_in_another_order_of_the_rows() -> None:
    rows = records("dpo", 40)
    one, other = (prompts(split(prepared(given), 0.2)[1]) for given in (rows, rows[::-1]))
    assert one == other


def test_groups_stay_together_in_the_part_that_is_trained_on() -> None:
    whole = prepared(records("grpo", 40), "grpo")
    train, _ = split(whole, 0.2)
    assert train.units is not None
    starts = train.units.starts.tolist()
    assert starts == list(range(0, len(train), 2))


def test_a_part_has_the_arrays_of_the_whole_which_processes_share() -> None:
    """A copy would be made by every process of a node, beside the file that all of them map."""
    whole = prepared(records("dpo", 40))
    for part in split(whole, 0.2):
        assert all(part.arrays[name] is whole.arrays[name] for name in whole.arrays)
        assert part.sizes.tolist() == [[len(e.prompt_ids), *map(len, e.completions)] for e in part]
        assert len(part.prompts) == len(part)


def test_tokens_of_an_earlier_version_are_split_by_the_tokens_of_their_prompts() -> None:
    whole = prepared(records("dpo", 40))
    earlier = StoredExamples(whole.arrays | {"prompts": np.zeros(0, np.int64)})
    train, held_out = split(earlier, 0.2)
    assert len(held_out) == 8
    assert not prompts(train) & prompts(held_out)


# A run


def test_by_default_a_twentieth_is_held_out_whatever_the_seed(tmp_path: Path) -> None:
    trainers = [tiny_trainer(tmp_path / str(seed), num_examples=160, seed=seed) for seed in (1, 2)]
    assert [(len(t.train_examples), len(t.eval_examples)) for t in trainers] == [(152, 8)] * 2
    assert fingerprint(trainers[0].eval_examples) == fingerprint(trainers[1].eval_examples)


def test_of_few_data_none_are_held_out_by_default(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, num_examples=140)
    assert (len(trainer.train_examples), len(trainer.eval_examples)) == (140, 0)


def test_nothing_is_held_out_where_less_than_a_global_batch_would_be_left(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, num_examples=160, per_device_train_batch_size=160)
    assert (len(trainer.train_examples), len(trainer.eval_examples)) == (160, 0)


def test_a_fraction_of_0_trains_on_all_data(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, num_examples=160, eval_fraction=0)
    assert (len(trainer.train_examples), len(trainer.eval_examples)) == (160, 0)


def test_nothing_is_held_out_beside_an_eval_dataset(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, num_examples=160, eval_dataset=records("dpo", 4, 5))
    assert (len(trainer.train_examples), len(trainer.eval_examples)) == (160, 4)


def test_the_start_says_what_was_held_out_and_how_to_train_on_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained(tmp_path, num_examples=20, eval_fraction=0.1, dry_run=True)
    said = "data: 18 examples; held out: 2 examples, whole prompts (eval_fraction=0.1; 0 trains on all)"
    assert said in capsys.readouterr().out.splitlines()


def test_an_evaluation_is_of_the_held_out_data_against_the_initial_policy(tmp_path: Path) -> None:
    trainer = trained(tmp_path, num_examples=20, eval_fraction=0.2, eval_strategy="steps", eval_steps=3)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "eval_rewards_initial/margins" in line] == [3, 6]
    assert trainer.held_out.initial.scores is not None
    assert len(trainer.held_out.initial.scores) == 4


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"eval_fraction": 1.0}, "eval_fraction: expected a number from 0 to below 1, got 1.0"),
        ({"eval_fraction": -0.1}, "eval_fraction: expected a number from 0 to below 1, got -0.1"),
        (
            {"eval_fraction": 0.1, "eval_dataset": "heldout.jsonl"},
            "eval_fraction: expected None or 0 with an eval_dataset, got 0.1",
        ),
        (
            {"eval_fraction": 0.1, "rollout_every": 1, "objective": "grpo", "reference": "copy"},
            "eval_fraction: expected None or 0 with rollout_every",
        ),
    ],
)
def test_a_fraction_that_cannot_be_held_out_is_refused(tmp_path: Path, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        tiny_config(tmp_path, **settings)


@pytest.mark.parametrize(
    ("given", "numbers"),
    [
        ({"eval_fraction": 0.01}, "got 0.01 of 10 examples of 10 prompts"),
        (
            {"train_dataset": [{"prompt": "w1", "chosen": f" w{i}", "rejected": " w9"} for i in range(8)]},
            "got 0.5 of 8 examples of 1 prompt",
        ),
    ],
)
def test_data_without_a_whole_prompt_to_hold_out_are_refused(
    tmp_path: Path, given: dict[str, Any], numbers: str
) -> None:
    with pytest.raises(ValueError, match=f"eval_fraction: expected a share that holds out .* {numbers}"):
        tiny_trainer(tmp_path, **{"eval_fraction": 0.5} | given)


# Resumed and shown


SAVED: dict[str, Any] = {"num_examples": 20, "save_strategy": "steps", "save_steps": 3}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps with a tenth held out, with checkpoints of steps 3 and 6."""
    folder = tmp_path_factory.mktemp("run")
    trained(folder, eval_fraction=0.1, **SAVED)
    return folder


def test_a_checkpoint_is_refused_with_another_fraction(saved: Path, tmp_path: Path) -> None:
    resume = {"resume_from_checkpoint": str(saved / "checkpoint-3")}
    with pytest.raises(ValueError, match=r"expected eval_fraction=0.1, as in .*, got 0$"):
        trained(tmp_path, eval_fraction=0, **SAVED, **resume)


def test_a_checkpoint_without_held_out_data_says_how_to_continue_with_all(tmp_path: Path) -> None:
    """As a checkpoint of an earlier version, which trained on all data."""
    trained(tmp_path / "all", max_steps=2, eval_fraction=0, **SAVED | {"num_examples": 160, "save_steps": 1})
    resume = {"resume_from_checkpoint": str(tmp_path / "all" / "checkpoint-1")}
    with pytest.raises(ValueError, match=r"which was trained on all its data, got 0.05, .*: set eval_fraction=0$"):
        trained(tmp_path / "new", **SAVED | {"num_examples": 160}, **resume)


def test_a_stored_run_has_the_examples_that_it_was_trained_on(saved: Path) -> None:
    run = open_run(saved, 3, model="unused")
    examples, micros = examples_of(run, 3)
    trainer = tiny_trainer(saved / "again", eval_fraction=0.1, num_examples=20)
    assert fingerprint(examples) == fingerprint(trainer.train_examples)
    assert [micro.ids for micro in micros] == [micro.ids for micro in trainer.plan.window(3, 0)]


def test_a_resumed_run_has_the_losses_and_the_held_out_data_of_the_whole_one(saved: Path, tmp_path: Path) -> None:
    resumed = trained(tmp_path, eval_fraction=0.1, **SAVED, resume_from_checkpoint=str(saved / "checkpoint-3"))
    lines = [json.loads(line) for line in (saved / "metrics.jsonl").read_text().splitlines()]
    assert losses(resumed) == [line["loss"] for line in lines if "loss" in line]
    assert (tmp_path / "initial_eval_logp.pt").read_bytes() == (saved / "initial_eval_logp.pt").read_bytes()
