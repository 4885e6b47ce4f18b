"""The demo: its task, and all its output files in a run of a few steps."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from humanline_fused.demo import task
from humanline_fused.demo.comparison import HELDOUT_REWARD, TRAIN_SECONDS, Demo, run_demo, table
from humanline_fused.demo.model_answers import preference_pairs, sample
from humanline_fused.demo.start_model import make_model, make_tokenizer
from humanline_fused.looking.curves import read_metrics, series

SMALL = {
    "demonstrations": 400,
    "pair_prompts": 64,
    "heldout_prompts": 32,
    "start_steps": 30,
    "steps": 4,
    "sync_every": 1,
    "batch_size": 4,
    "learning_rate": 1e-3,
    "evaluate_every": 2,
}


@pytest.fixture(scope="module")
def small_demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Demo with lists of two letters: 30 steps give 35 pairs, twice the number that four steps need."""
    folder = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(task, "make_prompts", _short_prompts)
        return folder, run_demo(Demo(folder, **SMALL))


def _short_prompts(count: int, rng: random.Random) -> list[str]:
    return [f"sort {rng.choice('abcd')}{rng.choice('abcd')}: " for _ in range(count)]


def test_the_reward_accepts_only_the_sorted_letters() -> None:
    assert task.reward("sort cabba: ", "aabbc") == 1.0
    assert [task.reward("sort cab: ", wrong) for wrong in ("cba", "ab", "abcc", "abc ", "")] == [0.0] * 5


def test_prompts_are_distinct_and_determined_by_the_seed() -> None:
    prompts = task.make_prompts(500, random.Random(3))
    assert len(set(prompts)) == 500
    assert prompts == task.make_prompts(500, random.Random(3)) != task.make_prompts(500, random.Random(4))


def test_demonstrations_are_in_ascending_or_descending_order() -> None:
    rng = random.Random(0)
    shown = [task.demonstration("sort cab: ", rng) for _ in range(1000)]
    assert set(shown) == {"abc", "cba"}
    assert 350 < shown.count("abc") < 450


def test_the_tokenizer_decodes_to_the_original_text() -> None:
    tokenizer = make_tokenizer()
    ids = tokenizer("sort bead: abde<eos>")["input_ids"]
    assert len(ids) == len("sort bead: abde") + 1
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == "sort bead: abde"


def test_samples_are_determined_by_the_seed_and_keep_torchs_global_generator() -> None:
    tokenizer = make_tokenizer()
    model = make_model(tokenizer, seed=0)
    before = torch.get_rng_state()
    answers = [sample(model, tokenizer, ["sort cab: ", "sort bead: "], seed) for seed in (1, 1, 2)]
    assert answers[0] == answers[1] != answers[2]
    assert torch.equal(torch.get_rng_state(), before)


def test_a_prompt_gives_a_pair_only_if_its_answers_differ_in_reward(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = iter([["abc", "cb", "a"], ["cba", "bc", "b"]])
    monkeypatch.setattr("humanline_fused.demo.model_answers.sample", lambda *_: next(drawn))
    model = tokenizer = None
    prompts = ["sort cab: ", "sort bc: ", "sort d: "]
    pairs = list(preference_pairs(model, tokenizer, prompts, 0, samples=2))  # pyright: ignore[reportArgumentType]
    assert pairs == [
        {"prompt": "sort cab: ", "chosen": "abc", "rejected": "cba"},
        {"prompt": "sort bc: ", "chosen": "bc", "rejected": "cb"},
    ]


def test_the_demo_writes_valid_preference_data(small_demo: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = small_demo
    pairs = [json.loads(line) for line in (folder / "data" / "pairs.jsonl").read_text().splitlines()]
    assert pairs
    for pair in pairs:
        assert task.reward(pair["prompt"], pair["chosen"]) > task.reward(pair["prompt"], pair["rejected"])


@pytest.mark.parametrize("name", ["start", "plain", "humanline"])
def test_the_demo_writes_models_that_load(small_demo: tuple[Path, dict[str, Any]], name: str) -> None:
    folder, _ = small_demo
    model = AutoModelForCausalLM.from_pretrained(folder / name)
    tokenizer = AutoTokenizer.from_pretrained(folder / name)
    assert sample(model, tokenizer, ["sort cab: "], seed=0)[0] is not None
    start = AutoModelForCausalLM.from_pretrained(folder / "start")
    same = all(torch.equal(a, b) for a, b in zip(model.parameters(), start.parameters(), strict=True))
    assert same == (name == "start")


def test_both_runs_start_at_the_same_reward_and_are_evaluated_on_schedule(
    small_demo: tuple[Path, dict[str, Any]],
) -> None:
    folder, results = small_demo
    curves = {name: read_metrics(folder / name) for name in ("plain", "humanline")}
    for name, lines in curves.items():
        steps, rewards = series(lines, "step", HELDOUT_REWARD)
        assert steps == [0, 2, 4]
        assert rewards[0] == results["start"]["reward"]
        assert rewards[-1] == results[name]["reward"]
        assert max(rewards) == results[name]["best"]
        clock = series(lines, "step", TRAIN_SECONDS)[1]
        assert clock == sorted(clock)


def test_the_runs_differ_only_in_clamp_and_reference(small_demo: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = small_demo
    first = {name: read_metrics(folder / name) for name in ("plain", "humanline")}
    losses = {name: series(lines, "step", "loss")[1] for name, lines in first.items()}
    assert losses["plain"][0] == losses["humanline"][0]
    assert losses["plain"][-1] != losses["humanline"][-1]


def test_the_demo_writes_a_picture_and_its_numbers(small_demo: tuple[Path, dict[str, Any]]) -> None:
    folder, results = small_demo
    assert (folder / "comparison.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((folder / "results.json").read_text()) == results


def test_the_table_shows_a_dash_for_a_missing_number() -> None:
    rows = table({"start": {"reward": 0.5, "seconds": 3.0}}).splitlines()
    assert rows[0].split() == ["reward", "best", "loss", "unclamped", "seconds"]
    assert rows[1].split() == ["start", "0.500", "–", "–", "–", "3.0"]
