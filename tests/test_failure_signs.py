"""A run with a known sign of failure warns once and names the settings to change."""

import json
import math
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from humanline_fused.training.run.checkpoint import newest_complete
from humanline_fused.training.run.failure_signs import FailureSign, FailureSigns, collapsed
from tests.tiny_model import losses, tiny_config, tiny_trainer, trained


def signs(tmp_path: Path, lines: list[dict[str, float]], max_steps: int = 20, **settings: Any) -> list[str]:
    """Return the warnings of a run that logged ``lines``, one per step."""
    watch = FailureSigns(tiny_config(tmp_path, max_steps=max_steps, **settings))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step, line in enumerate(lines, 1):
            state = SimpleNamespace(global_step=step, max_steps=max_steps, is_world_process_zero=True)
            watch.on_log(watch.config, state, None, logs=line)
    assert all(issubclass(warning.category, FailureSign) for warning in caught)
    return [str(warning.message) for warning in caught]


def test_a_collapse_is_more_than_half_of_a_real_gain_lost_twice_in_a_row():
    assert not collapsed([0.1, 0.9, 0.2], start=0.1)
    assert not collapsed([0.1, 0.9, 0.2, 0.8], start=0.1)
    assert collapsed([0.1, 0.9, 0.4, 0.3], start=0.1)
    assert not collapsed([0.5, 0.4, 0.3, 0.2], start=0.5)
    assert not collapsed([0.50, 0.51, 0.49, 0.50], start=0.50)


@pytest.mark.parametrize(
    ("name", "start"),
    [("reward", 0.1), ("heldout/reward", 0.1), ("eval_reward", 0.1), ("eval_rewards_initial/margins", 0)],
)
def test_a_reward_collapse_with_a_small_k_gives_one_warning_with_k(tmp_path: Path, name: str, start: float):
    lines = [{name: value} for value in (0.1, 0.6, 0.2, 0.1, 0.1, 0.0)]
    (said,) = signs(tmp_path, lines, sync_every=1)
    assert f"{name} collapsed: {start} at the start, 0.6 at best, 0.1 at step 4" in said
    assert "Raise sync_every" in said
    assert signs(tmp_path, lines, sync_every=16) == signs(tmp_path, lines, reference="frozen") == []
    assert signs(tmp_path, [{name: value} for value in (0.1, 0.6, 0.4, 0.6, 0.5)]) == []


def test_settled_margins_are_not_a_collapse(tmp_path: Path):
    assert signs(tmp_path, [{"eval_rewards_initial/margins": value} for value in (0.50, 0.51, 0.49, 0.50)]) == []


def test_a_resumed_run_includes_its_earlier_log_lines(tmp_path: Path):
    watch = FailureSigns(tiny_config(tmp_path))
    history = [{"reward": 0.1}, {"reward": 0.6}, {"reward": 0.1}]
    state = SimpleNamespace(global_step=4, max_steps=20, is_world_process_zero=True, log_history=history)
    watch.on_train_begin(watch.config, state, None)
    with pytest.warns(FailureSign, match=r"0\.1 at the start, 0\.6 at best"):
        watch.on_log(watch.config, state, None, logs={"reward": 0.1})


NEED_NOT_FALL = (
    "This need not lower the reward: watch a held-out one and, if it stops rising, raise sync_every, or resample "
    "(a new round)"
)


def rising(rise: float = 0.03) -> list[dict[str, float]]:
    return [{"humanline/surplus": 0.4 + rise * line} for line in range(15)]


def test_a_synced_reference_that_leaves_the_data_gives_one_warning(tmp_path: Path):
    (said,) = signs(tmp_path, rising(), sync_every=4)
    assert said.startswith(
        "the reference has left the data: their surplus surprisal under it rose from 0.46 to 0.61 nats per token up to "
        "step 10, with a sync every 4 step(s). "
    )
    assert said.endswith(NEED_NOT_FALL)
    assert signs(tmp_path, rising(0.0)) == signs(tmp_path, rising(-0.03)) == []


def test_a_policy_that_leaves_the_data_is_seen_before_its_reference_follows(tmp_path: Path):
    lines = [{"humanline/surplus": 0.4, "humanline/data_drift": 0.03 * line} for line in range(15)]
    (said,) = signs(tmp_path, lines, sync_every=50)
    assert said.startswith(
        "the policy has left the data: their log-prob under it fell by 0.27 nats per token up to step 10, and the "
        "reference follows, with a sync every 50 step(s). "
    )
    assert said.endswith(NEED_NOT_FALL)
    assert signs(tmp_path, lines, reference="frozen") == []


def test_a_frozen_reference_cannot_leave_the_data_and_rounds_are_not_judged(tmp_path: Path):
    rounds = {"objective": "grpo", "rollout_every": 2, "reference": "copy", "num_generations": 2}
    rounds |= {"reward": "tests.test_rollout:reward", "max_completion_length": 4}
    assert signs(tmp_path, rising(), reference="frozen") == signs(tmp_path, rising(), **rounds) == []


def test_a_gradient_norm_of_ten_times_its_median_gives_one_warning(tmp_path: Path):
    calm = [{"grad_norm": 2.0 + step % 3} for step in range(10)]
    (said,) = signs(tmp_path, [*calm, {"grad_norm": 40.0}, {"grad_norm": 90.0}])
    assert "the gradient norm is 40 at step 11, its median over previous log lines 3:" in said
    assert "max_grad_norm" in said
    assert signs(tmp_path, [*calm, {"grad_norm": 29.0}, {"grad_norm": math.inf}]) == []
    assert signs(tmp_path, [*calm[:9], {"grad_norm": 40.0}]) == []


def quiet(margin: float, unclamped: float = 1.0) -> dict[str, float]:
    return {"loss": 0.69, "humanline/unclamped": unclamped, "rewards/margins": margin}


def test_no_clamped_token_and_no_gain_in_half_the_run_give_one_warning(tmp_path: Path):
    (said,) = signs(tmp_path, [quiet(-0.01)] * 12)
    assert "no token was clamped in 10 log lines, and nothing was gained up to step 10" in said
    assert "Raise learning_rate" in said


@pytest.mark.parametrize(
    ("lines", "settings"),
    [
        ([quiet(-0.01)] * 9, {}),
        ([quiet(0.01)] * 12, {}),
        ([quiet(-0.01)] * 5 + [quiet(-0.01, 0.99)] + [quiet(-0.01)] * 9, {}),
        ([quiet(-0.01)] * 12, {"clamp": False}),
        ([quiet(-0.01)] * 12, {"max_steps": 100}),
        ([{"eval_rewards_initial/margins": 0.1, "eval_loss": 0.6}, *[quiet(-0.01)] * 12], {}),
        (
            [{"eval_loss": 0.2}, {"eval_loss": 0.1}, *[{"loss": 0.1, "humanline/unclamped": 1.0}] * 12],
            {"objective": "grpo"},
        ),
        ([{"loss": 0.1, "humanline/unclamped": 1.0}] * 12, {"objective": "grpo"}),
    ],
    ids=[
        "early",
        "gained",
        "clamped",
        "no clamp",
        "first half",
        "held-out gain",
        "grpo's held-out gain",
        "grpo without evaluation",
    ],
)
def test_a_run_with_a_gain_or_clamped_tokens_gives_no_warning(
    tmp_path: Path, lines: list[dict[str, float]], settings: dict[str, Any]
):
    assert signs(tmp_path, lines, **settings) == []


# Losses and weights that are not finite


class Poison(TrainerCallback):
    """Sets a weight to NaN after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            with torch.no_grad():
                kwargs["model"].lm_head.weight[3, 3] = math.nan


def test_a_nan_loss_ends_the_run_after_its_log_line_is_written(tmp_path: Path):
    with pytest.raises(FloatingPointError, match=r"the loss is nan at step 4, .* resume from one of them"):
        trained(tmp_path, callbacks=[Poison(3)])
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["loss"] is None for line in lines] == [False, False, False, True]


def test_weights_that_are_not_finite_are_not_exported(tmp_path: Path):
    trainer = trained(tmp_path, callbacks=[Poison(6)])
    with pytest.raises(FloatingPointError, match=r"is not written: the weights are not finite\. .*start a new run"):
        trainer.save_model()
    assert not (tmp_path / "model.safetensors").exists()


def test_nonfinite_weights_are_not_saved_and_the_previous_checkpoint_resumes(tmp_path: Path):
    saving = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": 1, "logging_steps": 100}
    with pytest.raises(FloatingPointError, match=r"checkpoint-4 is not written: .*resume from .*checkpoint-2"):
        trained(tmp_path, callbacks=[Poison(3)], **saving)
    assert newest_complete(tmp_path) == tmp_path / "checkpoint-2"
    resumed = tiny_trainer(tmp_path, resume_from_checkpoint="auto", **saving)
    resumed.train()
    assert resumed.state.global_step == 6
    assert all(math.isfinite(loss) for loss in losses(resumed))
