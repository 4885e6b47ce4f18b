"""Options of a loss in the trainer: its temperature, an entropy bonus, and GRPO's gradient in one launch."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from humanline_fused import TokenLogp, grpo_loss, token_logp_and_entropy
from humanline_fused.autograd.grpo_one_launch import GRPOOneLaunch
from humanline_fused.functional import dpo_loss, kto_kl, kto_loss, token_logp
from humanline_fused.model.fused_head import score_in_forward_
from humanline_fused.training.data.batch import Batch, collate
from humanline_fused.training.data.plan import MicroBatch
from humanline_fused.training.data.prepare import prepare
from humanline_fused.training.loss_options import ENTROPY, with_entropy
from humanline_fused.training.objectives import find_objective
from humanline_fused.training.objectives.objective import LossResult
from humanline_fused.training.run.identity import check_identity, loss_identity
from humanline_fused.training.scoring import Scorer
from tests.batches import by_sequence, logits_of
from tests.error_budget import FLOAT32_EPSILON
from tests.test_rollout import rounds_trainer
from tests.test_trainer_head import DESCENT, DRIFT_OF_STEP, ROUNDING
from tests.tiny_model import losses, records, tiny_config, tiny_model, tiny_tokenizer, tiny_trainer, trained

TEMPERATURE = 0.7
LAYOUTS = ("padded", "shared_prompt")


def batch_of(objective: str, layout: str, temperature: float = 1.0) -> Batch:
    """Return the first batch of tiny data, with the log-probs of another model at a temperature as the reference's."""
    examples = prepare(records(objective, 10), tiny_tokenizer(), find_objective(objective), max_length=32).examples
    micro = MicroBatch((0, 1, 2, 3), (1, 2, 3, 0))
    batch = collate(
        examples,
        micro,
        find_objective(objective),
        pad_token_id=0,
        max_length=32,
        layout=layout,  # pyright: ignore
    )
    other, scores = tiny_model(seed=1).eval(), {}
    with torch.no_grad():
        for prefix, part in batch.passes.items():
            given = replace(logits_of(other, part), temperature=temperature)
            scores[f"{prefix}ref_logp"] = token_logp(given, part.target_ids, part.loss_mask)
    return replace(batch.with_scores(scores), num_items=torch.tensor(9.0))


def rounding(batch: Batch) -> float:
    """Return the rounding of a loss, or of an entry of its gradient: two epsilons of every log-prob of a pair.

    An entry of the gradient sums as many terms as a loss, each smaller than a log-prob.
    """
    of_sequences = torch.stack([part.abs().sum() for part in by_sequence(batch.ref_logp, batch)])
    return 2 * FLOAT32_EPSILON * (1 + 2 * of_sequences.max().item() / TEMPERATURE)


def by_hand(objective: str, batch: Batch, model: Any, temperature: float) -> Tensor:
    """Return the loss of the package's functions on the model's logits at a temperature."""
    policy = replace(logits_of(model, batch), temperature=temperature)
    reference, settings = TokenLogp(batch.ref_logp), {"cu_seqlens": batch.cu_seqlens}
    given = policy, reference, batch.target_ids, batch.loss_mask
    match objective:
        case "dpo":
            return dpo_loss(*given, beta=0.5, **settings).loss
        case "grpo":
            advantages = batch.columns["advantages"]
            return grpo_loss(*given, advantages, beta=0.5, num_items_in_batch=batch.num_items, **settings).loss
        case _:
            pairs = batch.kl
            logp = token_logp(
                replace(logits_of(model, pairs), temperature=temperature), pairs.target_ids, pairs.loss_mask
            )
            tokens = TokenLogp(pairs.ref_logp), pairs.target_ids, pairs.loss_mask
            kl = kto_kl(TokenLogp(logp.detach()), *tokens, cu_seqlens=pairs.cu_seqlens)
            return kto_loss(*given, batch.columns["desirable"], kl=kl, beta=0.5, **settings).loss


def scored(objective: str, batch: Batch, head: str, **settings: Any) -> tuple[LossResult, Tensor]:
    """Return the trainer's loss of a batch, and the gradient of the model's head."""
    config = tiny_config("unused", objective=objective, head=head, **settings)
    model = tiny_model().eval()
    if head == "fused":
        score_in_forward_(model)
    loss, out = Scorer(config, find_objective(objective)).loss(model, batch)
    loss.backward()
    gradient = model.lm_head.weight.grad
    assert gradient is not None
    return out, gradient


# Temperature


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("head", ["fused", "logits"])
def test_the_loss_is_that_of_log_probs_at_its_temperature(objective: str, head: str, layout: str):
    batch = batch_of(objective, layout, TEMPERATURE)
    out, gradient = scored(objective, batch, head, loss_temperature=TEMPERATURE)
    model = tiny_model().eval()
    loss = by_hand(objective, batch, model, TEMPERATURE)
    loss.backward()
    torch.testing.assert_close(out.loss, loss, rtol=0, atol=rounding(batch))
    torch.testing.assert_close(gradient, model.lm_head.weight.grad, rtol=0, atol=rounding(batch))
    with torch.no_grad():
        assert abs(by_hand(objective, batch, model, 1.0) - loss) > 10 * rounding(batch)


def test_the_reference_is_scored_at_the_same_temperature():
    batch = batch_of("grpo", "padded")
    scorer = Scorer(tiny_config("unused", objective="grpo", loss_temperature=TEMPERATURE), find_objective("grpo"))
    model = tiny_model()
    score_in_forward_(model)
    (scores,) = scorer.score(model, [batch], with_entropy=True)
    given = replace(logits_of(tiny_model().eval(), batch), temperature=TEMPERATURE)
    expected = token_logp_and_entropy(given, batch.target_ids, batch.loss_mask)
    torch.testing.assert_close(scores["ref_logp"], expected.logp, rtol=0, atol=rounding(batch))
    torch.testing.assert_close(scores["ref_entropy"], expected.entropy, rtol=0, atol=rounding(batch))


def test_offline_the_temperature_is_1_and_in_rounds_that_of_the_samples():
    rounds: dict[str, Any] = {"objective": "grpo", "reference": "copy", "rollout_every": 2, "num_generations": 2}
    assert tiny_config("unused").temperature_of_loss == 1
    assert tiny_config("unused", loss_temperature=0.5).temperature_of_loss == 0.5
    assert tiny_config("unused", temperature=0.8, **rounds).temperature_of_loss == 0.8
    assert tiny_config("unused", temperature=0.8, loss_temperature=1.0, **rounds).temperature_of_loss == 1


def test_a_round_says_that_its_loss_has_the_temperature_of_its_samples(tmp_path: Path, capsys):
    trainer = rounds_trainer(tmp_path, objective="grpo", temperature=0.8, max_steps=2)
    trainer.train()
    assert "at temperature 0.8, that of the samples, computed by" in capsys.readouterr().out
    # In the first step the samples come from the reference at that temperature: their ratio is 1.
    first = next(line for line in trainer.state.log_history if "loss" in line)
    assert first["humanline/mean_ratio"] == pytest.approx(1, abs=ROUNDING)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss_temperature": 0.0}, "loss_temperature: expected a finite number > 0, got 0.0"),
        ({"loss_temperature": math.inf}, "loss_temperature: expected a finite number > 0, got inf"),
        ({"entropy_coef": -1.0}, "entropy_coef: expected a finite number >= 0, got -1.0"),
        ({"one_launch": True}, "one_launch: expected False .a setting of grpo, not of dpo., got True"),
        ({"one_launch": True, "objective": "grpo"}, "one_launch: expected False with head='fused'"),
        (
            {"one_launch": True, "objective": "grpo", "head": "logits", "perception": "sampling"},
            "one_launch: expected False with sampling",
        ),
        (
            {"one_launch": True, "objective": "grpo", "head": "logits", "log_entropy": True},
            "one_launch: expected False with entropy_coef or log_entropy",
        ),
    ],
)
def test_a_setting_that_cannot_be_is_refused_with_what_was_expected(settings: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        tiny_config("unused", **settings)


def test_a_checkpoint_of_another_temperature_or_bonus_is_refused(tmp_path: Path):
    mine = tiny_trainer(tmp_path, loss_temperature=0.5).identity()
    check_identity(mine, mine, "there")
    for name, value in (("temperature", 0.6), ("entropy_coef", 0.1)):
        saved = mine | {"loss": mine["loss"] | {name: value}}
        with pytest.raises(ValueError, match=rf"expected the loss that there was written with, \{{'{name}': {value}"):
            check_identity(saved, mine, "there")


def test_a_checkpoint_of_an_earlier_version_has_temperature_1_and_no_bonus(tmp_path: Path):
    mine = tiny_trainer(tmp_path).identity()
    earlier = {name: value for name, value in mine.items() if name != "loss"}
    check_identity(earlier, mine, "there")
    with pytest.raises(ValueError, match=r"expected the loss .* \{'temperature': 1.0\}, got \{'temperature': 0.5\}"):
        check_identity(earlier, tiny_trainer(tmp_path, loss_temperature=0.5).identity(), "there")


def with_margin(margin: Any) -> dict[str, Any]:
    return {"objective": "tests.user_loss:WithMargin", "objective_kwargs": {"margin": margin}}


def of_loss(**settings: Any) -> dict[str, Any]:
    config = tiny_config("unused", **settings)
    return loss_identity(config, config.make_objective())


@pytest.mark.parametrize(
    ("then", "now", "different"),
    [
        ({}, {"clamp": False}, ["clamp"]),
        ({}, {"log_epsilon_P": -0.2}, ["log_epsilon_P"]),
        ({}, {"perception": "sampling"}, ["perception"]),
        ({"perception": "sampling"}, {"perception": "sampling", "gamma_P": 0.7}, ["gamma_P"]),
        ({}, {"beta": 3.0, "loss_type": "ipo"}, ["beta", "loss_type"]),
        ({"objective": "kto"}, {"objective": "kto", "desirable_weight": 2.0}, ["desirable_weight"]),
        ({"objective": "grpo"}, {"objective": "grpo", "epsilon_high": 0.3}, ["epsilon_high"]),
        (with_margin((1, 2)), with_margin(3), ["objective_kwargs"]),
        ({"clamp": False}, {"clamp": False, "log_epsilon_P": -0.2}, []),  # which is not used
        ({"impl": "eager"}, {"impl": "auto", "log_entropy": True}, []),
        ({"objective": "grpo", "head": "logits"}, {"objective": "grpo", "head": "logits", "one_launch": True}, []),
    ],
)
def test_a_checkpoint_of_another_loss_is_refused(then: dict[str, Any], now: dict[str, Any], different: list[str]):
    rest = {"engine": "one", "reference": "frozen", "sync_every": None, "model": {}, "batches": {}}
    saved, mine = ({**rest, "loss": of_loss(**settings)} for settings in (then, now))
    check_identity(json.loads(json.dumps(mine)), mine, "there")
    if not different:
        check_identity(saved, mine, "there")
        return
    old, new = ({name: identity["loss"][name] for name in different} for identity in (saved, mine))
    with pytest.raises(ValueError, match=re.escape(f"expected the loss that there was written with, {old}, got {new}")):
        check_identity(saved, mine, "there")
    earlier = {name: value for name, value in saved["loss"].items() if name in ("temperature", "entropy_coef")}
    check_identity({**rest, "loss": earlier}, mine, "there")  # an earlier version named no more


# Entropy


def test_the_bonus_is_the_mean_entropy_over_the_tokens_of_the_step():
    bare = LossResult(torch.tensor(1.0), torch.zeros(1, 2), torch.zeros(1, 2), {})
    entropy = torch.tensor([[math.log(2), 0.0]])
    out = with_entropy(bare, entropy, torch.tensor(4.0), coefficient=0.5)
    assert out.loss.item() == pytest.approx(1 - 0.5 * math.log(2) / 4)
    few = with_entropy(bare, entropy, torch.tensor(0.25), coefficient=0.5)  # one token in four micro-batches
    assert few.loss.item() == pytest.approx(1 - 0.5 * math.log(2) / 0.25)
    total, weight = out.metrics[ENTROPY]
    assert total.item() / weight.item() == pytest.approx(math.log(2) / 2)
    assert with_entropy(bare, entropy, None, coefficient=0.5).loss == 1  # an evaluation has no bonus


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("head", ["fused", "logits"])
def test_a_bonus_changes_loss_and_gradient_by_those_of_the_entropy(objective: str, head: str, layout: str):
    batch = batch_of(objective, layout, TEMPERATURE)
    settings = {"loss_temperature": TEMPERATURE, "entropy_coef": 0.3}
    out, gradient = scored(objective, batch, head, **settings)
    model = tiny_model().eval()
    given = replace(logits_of(model, batch), temperature=TEMPERATURE)
    entropy = token_logp_and_entropy(given, batch.target_ids, batch.loss_mask).entropy
    assert batch.num_items is not None
    loss = by_hand(objective, batch, model, TEMPERATURE) - 0.3 * entropy.sum() / batch.num_items
    loss.backward()
    torch.testing.assert_close(out.loss, loss, rtol=0, atol=rounding(batch))
    torch.testing.assert_close(gradient, model.lm_head.weight.grad, rtol=0, atol=rounding(batch))
    total, weight = out.metrics[ENTROPY]
    torch.testing.assert_close(total / weight, entropy.detach().mean(), rtol=0, atol=rounding(batch))


def test_a_bonus_of_a_part_of_a_micro_batch_is_not_multiplied_with_its_share():
    batch, settings = batch_of("dpo", "padded"), {"log_entropy": True}
    bare, whole = (scored("dpo", batch, "fused", entropy_coef=c, **settings)[0].loss for c in (0.0, 0.5))
    quarter, repeated = (
        scored("dpo", replace(batch, share=share), "fused", entropy_coef=0.5, **settings)[0].loss for share in (0.25, 0)
    )
    torch.testing.assert_close(quarter, 0.25 * bare - (bare - whole), rtol=0, atol=rounding(batch))
    assert whole < bare
    assert repeated == 0


@pytest.mark.parametrize("objective", ["dpo", "grpo"])
def test_a_bonus_is_that_of_any_token_budget(tmp_path: Path, objective: str):
    settings: dict[str, Any] = {"entropy_coef": 0.5, "per_device_train_batch_size": 4, "max_steps": 2, **DESCENT}
    whole, cut = (
        trained(tmp_path / str(most), objective=objective, max_tokens_per_micro_batch=most, **settings)
        for most in (None, 24)
    )
    assert losses(cut) == pytest.approx(losses(whole), rel=0, abs=ROUNDING)


def test_without_an_entropy_there_is_no_metric_and_logging_it_changes_no_weight(tmp_path: Path, objective: str):
    settings = {"objective": objective, "max_steps": 3, **DESCENT}
    runs = [trained(tmp_path / str(on), log_entropy=on, **settings) for on in (False, True)]
    first, second = ([line for line in run.state.log_history if "loss" in line] for run in runs)
    assert not any(ENTROPY in line for line in first)
    assert all(0 < line[ENTROPY] < math.log(100) for line in second)
    weights = [torch.cat([p.detach().flatten() for p in run.model.parameters()]) for run in runs]
    torch.testing.assert_close(*weights, rtol=0, atol=3 * DRIFT_OF_STEP)


def test_a_bonus_is_that_of_any_cut_of_the_step_into_micro_batches(tmp_path: Path):
    settings: dict[str, Any] = {"objective": "grpo", "entropy_coef": 0.5, "num_examples": 16, "max_steps": 2, **DESCENT}
    cuts = {(4, 1): "whole", (2, 2): "halves", (1, 4): "quarters"}
    runs = [
        trained(tmp_path / name, per_device_train_batch_size=size, gradient_accumulation_steps=accumulation, **settings)
        for (size, accumulation), name in cuts.items()
    ]
    for run in runs[1:]:
        assert losses(run) == pytest.approx(losses(runs[0]), rel=0, abs=ROUNDING)


def test_a_bonus_keeps_groups_without_signal():
    assert tiny_config("unused", objective="grpo", beta=0.0).drop_no_signal
    assert not tiny_config("unused", objective="grpo", beta=0.0, entropy_coef=0.1).drop_no_signal


def test_an_evaluation_logs_the_entropy_and_has_no_bonus(tmp_path: Path):
    evaluated = {"eval_dataset": records("dpo", 6, seed=5), "eval_strategy": "steps", "eval_steps": 2, "max_steps": 2}
    with_bonus, without = (
        trained(tmp_path / name, entropy_coef=coefficient, log_entropy=True, **evaluated, learning_rate=1e-12)
        for name, coefficient in (("bonus", 10.0), ("none", 0.0))
    )
    (one,), (two,) = ([line for line in run.state.log_history if "eval_loss" in line] for run in (with_bonus, without))
    assert one["eval_loss"] == pytest.approx(two["eval_loss"], abs=ROUNDING)
    assert 0 < one[f"eval_{ENTROPY}"] < math.log(100)
    assert losses(with_bonus)[0] < losses(without)[0] - 1


# One launch


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_launch_gives_the_loss_the_gradient_and_the_log_probs_of_two(impl: Any, layout: str):
    batch = batch_of("grpo", layout)
    two, one = (
        scored("grpo", batch, "logits", one_launch=on, impl=impl, gradient_accumulation_steps=3) for on in (False, True)
    )
    torch.testing.assert_close(one[0].loss, two[0].loss, rtol=0, atol=rounding(batch))
    torch.testing.assert_close(one[1], two[1], rtol=0, atol=rounding(batch))
    for name in ("logp", "ref_logp"):
        assert getattr(one[0], name).shape == batch.target_ids.shape
        torch.testing.assert_close(getattr(one[0], name), getattr(two[0], name), rtol=0, atol=rounding(batch))
    for name, (total, weight) in two[0].metrics.items():
        mine = one[0].metrics[name]
        torch.testing.assert_close(mine.total / mine.weight, total / weight, rtol=0, atol=rounding(batch))


def test_the_kernel_s_gradient_needs_no_second_scaling(tmp_path: Path, monkeypatch):
    seen = []
    backward = GRPOOneLaunch.backward

    def watched(ctx: Any, *gradients: Any) -> Any:
        seen.append(gradients[0].item())
        return backward(ctx, *gradients)

    monkeypatch.setattr(GRPOOneLaunch, "backward", staticmethod(watched))
    settings: dict[str, Any] = {"objective": "grpo", "head": "logits", "max_steps": 1, "num_examples": 6, **DESCENT}
    settings["gradient_accumulation_steps"] = 3
    one = trained(tmp_path / "one", one_launch=True, impl="triton", **settings)
    two = trained(tmp_path / "two", one_launch=False, impl="eager", **settings)
    assert seen == [1.0] * 3
    assert losses(one) == pytest.approx(losses(two), rel=0, abs=ROUNDING)
    weights = [torch.cat([p.detach().flatten() for p in run.model.parameters()]) for run in (one, two)]
    torch.testing.assert_close(*weights, rtol=0, atol=DRIFT_OF_STEP)


@pytest.mark.parametrize("accumulation", range(1, 33))
def test_the_divisor_of_the_trainer_is_undone_exactly(accumulation: int):
    loss = torch.ones((), requires_grad=True)
    (loss * accumulation / accumulation).backward()
    assert loss.grad == 1
