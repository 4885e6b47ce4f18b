"""Online rounds that fail keep the run and name the cause."""

import pickle
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from humanline_fused.training import HumanlineTrainer
from humanline_fused.training.online import sampler
from humanline_fused.training.online.reward import RewardFunction, RolloutError, the_reward
from humanline_fused.training.online.sampler import attempted, gathered
from humanline_fused.training.run.checkpoint import newest_complete
from tests.test_rollout import first_word, lines, rounds_trainer
from tests.tiny_model import records, tiny_model, tiny_tokenizer, tiny_trainer


def causes(error: BaseException | None) -> Iterator[BaseException]:
    while error := error and error.__cause__:
        yield error


def test_a_late_failure_saves_the_run_up_to_it(tmp_path: Path):
    def reward(completions: list[str], **columns: Any) -> list[float]:
        calls.append(len(completions))
        if len(calls) == 2:
            raise ZeroDivisionError("on purpose")
        return [float(i) for i in range(len(completions))]

    calls: list[int] = []
    trainer = rounds_trainer(tmp_path, reward, objective="grpo")
    with pytest.raises(RolloutError, match=r"ZeroDivisionError: on purpose .*line \d+\)\. The run up to step 2 is"):
        trainer.train()
    assert newest_complete(tmp_path) == tmp_path / "checkpoint-2"
    resumed = rounds_trainer(tmp_path, reward, objective="grpo", resume_from_checkpoint="auto")
    resumed.train()
    assert resumed.state.global_step == 4
    assert len(calls) == 3
    assert {line["step"] for line in lines(tmp_path / "completions.jsonl")} == {0, 2}


def test_a_failure_in_sampling_also_saves_the_run(tmp_path: Path):
    trainer = rounds_trainer(tmp_path, objective="grpo")
    draws = trainer.rounds._draw

    def out_of_memory(places: Any, model: Any, number: int, attempt: int) -> Any:
        if number:
            raise torch.OutOfMemoryError("on purpose")
        return draws(places, model, number, attempt)

    trainer.rounds._draw = out_of_memory
    with pytest.raises(
        RolloutError, match=r"round 1 failed: OutOfMemoryError: on purpose\. The run up to step 2"
    ) as got:
        trainer.train()
    assert any(isinstance(error, torch.OutOfMemoryError) for error in causes(got.value))
    resumed = rounds_trainer(tmp_path, objective="grpo", resume_from_checkpoint="auto", rollout_batch_size=4)
    resumed.train()
    assert resumed.state.global_step == 4


def test_an_error_of_one_process_is_raised_on_all_and_its_traceback_on_its_own(monkeypatch: pytest.MonkeyPatch):
    class Unsendable(Exception):
        """A class that pickle does not find."""

    def fails() -> int:
        raise Unsendable("on purpose")

    outcomes = [attempted(work, "sampling") for work in (lambda: 1, fails)]
    monkeypatch.setattr(sampler, "gather_object", lambda outcome: pickle.loads(pickle.dumps(outcomes)))
    for outcome, kinds in zip(outcomes, ([], [Unsendable]), strict=True):
        with pytest.raises(RolloutError, match=r"^sampling failed: Unsendable: on purpose$") as got:
            gathered(outcome)
        assert [type(error) for error in causes(got.value)] == kinds


def test_a_dry_run_samples_a_round_and_writes_nothing(tmp_path: Path):
    def reward(completions: list[str], **columns: Any) -> list[float]:
        calls.append(len(completions))
        return [float(i) for i in range(len(completions))]

    calls: list[int] = []
    rounds_trainer(tmp_path, reward, objective="grpo", dry_run=True).train()
    assert calls == [16]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("objective", ["dpo", "kto"])
def test_a_round_without_a_difference_is_drawn_again(tmp_path: Path, objective: str):
    def reward(completions: list[str], **columns: Any) -> list[float]:
        seen.append(completions)
        return [float(i) if len(seen) > 2 else 0.3 for i in range(len(completions))]

    seen: list[list[str]] = []
    rounds_trainer(tmp_path, reward, objective=objective, max_steps=2).train()
    assert len(seen) == 3
    assert seen[0] != seen[1] != seen[2]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([1.0], "expected 16 numbers, got 1"),
        (0.5, r"expected 16 numbers, got 0\.5"),
        ([1.0] * 15 + [float("nan")], "expected a finite number, got nan for"),
        ([1.0] * 15 + [None], "expected a finite number, got None for"),
    ],
)
def test_a_result_without_one_finite_number_per_sample_is_refused(tmp_path: Path, given: Any, said: str):
    with pytest.raises(RolloutError, match=said):
        rounds_trainer(tmp_path, lambda **_: given, objective="grpo").train()


def test_a_reward_function_that_hangs_is_interrupted(tmp_path: Path):
    began = time.monotonic()
    with pytest.raises(RolloutError, match=r"it took longer than 0\.2 s \(reward_timeout\)"):
        rounds_trainer(tmp_path, lambda **_: time.sleep(60), objective="grpo", reward_timeout=0.2).train()
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("objective", ["dpo", "kto"])
def test_a_constant_reward_stops_the_run_with_an_error(tmp_path: Path, objective: str):
    with pytest.raises(RolloutError, match=r"each of its .* prompts got 4 samples of equal reward"):
        rounds_trainer(tmp_path, lambda completions, **_: [1.0] * len(completions), objective=objective).train()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"reference": "lookahead"}, "reference: expected 'copy', 'adapter' or 'frozen' with rollout_every"),
        ({"num_generations": 1}, "num_generations: expected an integer >= 2, got 1"),
        ({"temperature": 0.0}, "temperature: expected a finite number > 0, got 0.0"),
        ({"rollout_every": None}, "num_generations: expected 8 without rollout_every, got 4"),
        ({"rollout_batch_size": 3}, "rollout_batch_size: expected an integer >= 4, got 3"),
        ({"num_generations": 3}, "expected num_generations to divide the 16 samples of a round"),
        ({"reward": "math:sqrt"}, "expected one reward function, .* got both"),
    ],
)
def test_invalid_settings_are_refused_by_name(tmp_path: Path, settings: dict[str, Any], said: str):
    with pytest.raises(ValueError, match=said):
        rounds_trainer(tmp_path, objective="grpo", **settings)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("math", "expected module:function, got 'math'"),
        ("no_such_module:f", "No module named 'no_such_module'"),
        ("math:no_such_function", "has no attribute 'no_such_function'"),
        ("math:pi", "to be a function, got float"),
    ],
)
def test_a_path_without_a_function_is_refused_by_name(tmp_path: Path, path: str, said: str):
    with pytest.raises(ValueError, match=said):
        rounds_trainer(tmp_path, None, objective="grpo", reward=path)


def test_a_reward_function_without_rounds_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="reward_function: expected None without rollout_every"):
        HumanlineTrainer(
            model=tiny_model(),
            args=tiny_trainer(tmp_path).args,
            train_dataset=records("dpo", 8),
            processing_class=tiny_tokenizer(),
            reward_function=first_word,
        )


@pytest.mark.parametrize(("given", "kind"), [([first_word], "list"), ("rewards:first_word", "str")])
def test_what_is_no_function_is_refused_before_anything_is_sampled(given: Any, kind: str):
    with pytest.raises(TypeError, match=f"reward_function: expected one function, got {kind}"):
        the_reward(None, given, rounds=True, held_out=False)


def test_a_reward_model_is_refused_as_it_takes_no_texts():
    with pytest.raises(TypeError, match=r"reward_function: expected one function, got LlamaForCausalLM"):
        the_reward(None, tiny_model(), rounds=True, held_out=False)


def test_an_object_that_can_be_called_has_the_name_of_its_class():
    class Length:
        def __call__(self, prompts: Any, completions: Any) -> list[int]:
            return [len(completion) for completion in completions]

    assert RewardFunction(Length(), timeout=1).name.endswith(".Length")
