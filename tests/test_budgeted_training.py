"""A run computes the same whether its micro-batches are one forward pass or cut into several by a token budget."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from humanline_fused.model.fused_head import score_in_forward_
from humanline_fused.training import HumanlineTrainer
from humanline_fused.training.data.batch import Batch, CutBatch
from humanline_fused.training.objectives import find_objective
from humanline_fused.training.windows import as_one
from tests.batches import labelled
from tests.test_layouts import STEPS, TIGHT, assert_equal_runs, rows
from tests.test_trainer_head import DESCENT, ROUNDING
from tests.tiny_model import losses, tiny_config, tiny_model, tiny_trainer, trained

pytestmark = pytest.mark.filterwarnings("ignore:max_tokens_per_micro_batch")

SIZES: dict[str, Any] = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "sync_every": 2}


def settings_of(objective: str) -> dict[str, Any]:
    data = {"train_dataset": rows(objective, 24), "eval_dataset": rows(objective, 10, seed=5)}
    return {"objective": objective, **data, **STEPS, "per_device_eval_batch_size": 4, **DESCENT, **TIGHT, **SIZES}


def run(folder: Path, objective: str, most: int | None, **settings: Any) -> HumanlineTrainer:
    return trained(folder, max_tokens_per_micro_batch=most, **settings_of(objective) | settings)


def number_of_parts(trainer: HumanlineTrainer) -> int:
    return sum(len(parts) for step in range(trainer.args.max_steps) for parts in trainer.windows.parts(step))


@pytest.mark.parametrize("layout", ["padded", "shared_prompt"])
def test_every_budget_gives_the_loss_gradient_and_metrics_of_the_whole(tmp_path: Path, objective: str, layout: str):
    """In float64, but for the divisor of GRPO's tokens and the sums of the metrics."""
    settings = settings_of(objective) | {"gradient_accumulation_steps": 1, "per_device_train_batch_size": 8}
    trainer = tiny_trainer(tmp_path, layout=layout, model=tiny_model().double(), **settings)
    trainer.current_gradient_accumulation_steps = 1
    trainer.choose_layout()
    reference = tiny_model(seed=1).double()
    score_in_forward_(reference)

    def step(most: int | None) -> tuple[torch.Tensor, torch.Tensor, dict[str, float], int]:
        trainer.windows.budget.most = most
        trainer.windows.clear()
        trainer.model.zero_grad()
        scores = trainer.scorer.score(reference, trainer._window(0))
        (inputs,) = trainer.windows.by_micro_batch(0, trainer.windows.inputs(0, scores))
        loss = trainer.training_step(trainer.model, inputs)
        gradient = torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None])
        return loss, gradient, trainer._drain("train"), number_of_parts(trainer)

    loss, gradient, metrics, _ = step(None)
    parts = []
    for most in (1, 30, 60, 1000):
        cut = step(most)
        torch.testing.assert_close(cut[0], loss, rtol=ROUNDING, atol=0)
        torch.testing.assert_close(cut[1], gradient, rtol=0, atol=float(gradient.abs().max()) * ROUNDING)
        assert cut[2] == pytest.approx(metrics, rel=ROUNDING, abs=ROUNDING)
        parts.append(cut[3])
    assert parts == sorted(parts, reverse=True)
    assert len(set(parts)) >= 3
    assert parts[-1] == trainer.args.max_steps


def test_a_run_with_a_budget_is_the_run_without_one(tmp_path: Path, objective: str):
    whole, cut = (run(tmp_path / str(most), objective, most) for most in (None, 25))
    assert number_of_parts(whole) == 4 * 2 < number_of_parts(cut)
    assert_equal_runs(whole, cut)


@pytest.mark.parametrize(
    "settings",
    [
        {"perception": "sampling", "gamma_P": 20.0, "log_epsilon_P": -1.5, "log_epsilon_R": 1.5},
        {"objective": "tests.user_loss:APOZero", "head": "logits", "layout": "sorted", "gradient_checkpointing": True},
    ],
)
def test_so_do_other_settings_with_a_forward_pass_for_each_unit(tmp_path: Path, settings: dict[str, Any]):
    settings = settings_of("dpo") | {"max_steps": 3} | settings
    whole, cut = (trained(tmp_path / str(most), max_tokens_per_micro_batch=most, **settings) for most in (None, 1))
    assert number_of_parts(cut) == 3 * 8
    assert_equal_runs(whole, cut)


def test_scaled_advantages_and_groups_of_unequal_size_are_cut_alike(tmp_path: Path):
    data = rows("grpo", 24)
    data[0] |= {"completions": [" w1", " w2 w3", " w4 w5 w6 w7"], "rewards": [0.0, 1.0, 3.0]}
    settings = {"train_dataset": data, "scale_rewards": "batch", "layout": "shared_prompt"}
    whole, cut = (run(tmp_path / str(most), "grpo", most, **settings) for most in (None, 25))
    assert number_of_parts(cut) > number_of_parts(whole)
    assert_equal_runs(whole, cut)


@pytest.mark.parametrize("objective", ["kto", "grpo"])
def test_look_ahead_is_the_copy_bit_by_bit_with_a_budget(tmp_path: Path, objective: str):
    ahead, copied = (run(tmp_path / kind, objective, 25, reference=kind) for kind in ("lookahead", "copy"))
    assert losses(ahead) == losses(copied)
    assert all(map(torch.equal, ahead.model.parameters(), copied.model.parameters()))


def test_a_run_resumes_with_another_budget(tmp_path: Path):
    objective = "kto"
    saving = {"save_strategy": "steps", "save_steps": 2, "sync_every": 3}
    whole = run(tmp_path / "run", objective, 40, **saving)
    resumed = tiny_trainer(tmp_path / "again", max_tokens_per_micro_batch=90, **settings_of(objective) | saving)
    resumed.train(str(tmp_path / "run" / "checkpoint-2"))
    assert number_of_parts(resumed) != number_of_parts(whole)
    assert_equal_runs(whole, resumed)


@pytest.mark.parametrize("layout", ["padded", "sorted", "shared_prompt"])
def test_no_forward_pass_has_more_tokens_than_the_budget(tmp_path: Path, objective: str, layout: str):
    if (objective, layout) == ("kto", "sorted"):
        return
    seen: list[int] = []
    settings = settings_of(objective) | {"max_steps": 1}
    trainer = tiny_trainer(tmp_path, max_tokens_per_micro_batch=60, layout=layout, **settings)
    decoder: Any = trainer.model.model
    decoder.register_forward_hook(
        lambda model, args, kwargs, out: seen.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    trainer.choose_layout()  # its probe is no part of the run
    seen.clear()
    trainer.train()
    assert len(seen) > 2 * 2
    assert 35 < max(seen) <= 60


def test_a_step_without_a_budget_is_one_batch_for_each_micro_batch(tmp_path: Path):
    trainer = run(tmp_path, "dpo", None, max_steps=1)
    assert not any(isinstance(batch, CutBatch) for batch in trainer.windows.by_micro_batch(1, trainer._window(1)))


def test_shares_of_a_mean_are_those_of_its_pairs_and_of_a_sum_one(tmp_path: Path):
    for objective, expected in (("dpo", {0.25, 0.5}), ("grpo", {1.0})):
        trainer = run(tmp_path / objective, objective, 60, max_steps=2, layout="padded")
        inputs = trainer.windows.inputs(1, trainer.scorer.score(trainer.model, trainer._window(1)))
        cut = [one for one in trainer.windows.by_micro_batch(1, inputs) if isinstance(one, CutBatch)]
        assert {part.share for one in cut for part in one.parts} <= expected
        assert all(sum(part.share for part in one.parts) == 1 for one in cut) == (objective == "dpo")


def packed(*lengths: int) -> Batch:
    """Return a part with sequences of so many tokens that count."""
    ids = torch.zeros(1, sum(lengths), dtype=torch.int64)
    return Batch(ids, ids[0], ids, torch.tensor([0, *lengths]).cumsum(0), {})


def shares(objective: str, *parts: Batch) -> list[float]:
    cut = as_one(find_objective(objective), parts)
    assert isinstance(cut, CutBatch)
    return [part.share for part in cut.parts]


def test_a_pair_counts_if_either_side_does_and_an_empty_part_has_no_share():
    one_of_two, one_side, none = packed(3, 0, 2, 0), packed(0, 4), packed(0, 0)
    assert shares("dpo", one_of_two, one_side, none) == [0.5, 0.5, 0]
    assert shares("dpo", packed(1, 0, 0, 1), one_side, none) == pytest.approx([2 / 3, 1 / 3, 0])
    assert shares("kto", one_of_two, one_side, none) == pytest.approx([2 / 3, 1 / 3, 0])
    assert shares("dpo", none, none) == [0, 0]


def test_a_repeated_part_keeps_its_share_of_0():
    repeated = replace(packed(5, 5), share=0.0)
    assert shares("dpo", packed(2, 1), packed(3, 3), repeated) == [0.5, 0.5, 0]


def test_a_mean_over_the_tokens_of_a_micro_batch_is_shared_by_tokens():
    assert shares("grpo", packed(3, 0), packed(4, 5)) == [0.25, 0.75]


def test_mismatched_pairs_are_trained_on_together_only_in_a_single_part(tmp_path: Path):
    size = {"per_device_train_batch_size": 4, "objective": "kto", "layout": "shared_prompt"}
    trainer = tiny_trainer(tmp_path, train_dataset=labelled(20, 4), **size)
    trainer.choose_layout()
    for most, together in ((1000, True), (60, False)):
        trainer.windows.budget.most = most
        trainer.windows.clear()
        assert {batch.trains_together for batch in trainer._window(0)} == {together}


@pytest.mark.parametrize("given", [0, -5, 2.5, True, "many"])
def test_a_budget_that_is_no_positive_integer_is_refused(tmp_path: Path, given: Any):
    with pytest.raises(ValueError, match=f"max_tokens_per_micro_batch: expected an integer >= 1, got {given!r}"):
        tiny_config(tmp_path, max_tokens_per_micro_batch=given)
