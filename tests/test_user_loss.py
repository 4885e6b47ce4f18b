"""A user-defined loss in the trainer: its data and settings, and the check before the first step."""

import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from humanline_fused import HumanlineClamp, HumanlineSampling, TokenLogp
from humanline_fused.looking.show import show_run
from humanline_fused.training import GROUPS, LABELS, PAIRS, HumanlineTrainer, LossInputs, Objective
from humanline_fused.training.objectives import find_objective
from humanline_fused.training.objectives.trial import check_loss
from tests.tiny_model import losses, records, tiny_config, tiny_model, tiny_tokenizer, tiny_trainer
from tests.user_loss import APOZero

KINDS = {PAIRS: "dpo", LABELS: "kto", GROUPS: "grpo"}


def trainer_with(objective: Any, output_dir: Path, number: int = 10, **settings: Any) -> HumanlineTrainer:
    config = tiny_config(output_dir, **settings)
    data = records(KINDS.get(getattr(objective, "form", None), "dpo"), number)
    given = {"train_dataset": data, "eval_dataset": data, "processing_class": tiny_tokenizer()}
    return HumanlineTrainer(tiny_model(), config, objective=objective, **given)


def test_an_object_trains_as_its_name_does(tmp_path: Path):
    given = trainer_with(APOZero(), tmp_path / "given")
    given.train()
    named = tiny_trainer(tmp_path / "named", objective="tests.user_loss:APOZero", train_dataset=records("dpo", 10))
    named.train()
    assert losses(given) == losses(named)
    assert given.args.objective_name == given.identity()["batches"]["objective"] == "apo_zero"
    assert given.identity() == named.identity()


def test_a_loss_of_labels_gets_them_and_the_mismatched_pairs(tmp_path: Path):
    class Signed(Objective):
        name, form, mismatched, kls, labels = "signed", LABELS, True, [], []

        def loss(self, tokens: Any, config: Any) -> Any:
            sign = tokens.columns["desirable"].float() * 2 - 1
            self.kls.append(float(tokens.kl))
            self.labels.append(tokens.columns["desirable"].tolist())
            return -(sign * tokens.sums(tokens.log_ratio) / tokens.lengths).mean(), {}

    trainer = trainer_with(Signed(), tmp_path, per_device_train_batch_size=3)
    trainer.train()
    assert max(Signed.kls) > 0
    window = trainer.plan.window(5, 0)[0].ids
    assert Signed.labels[-1] == [trainer.train_examples[i].weight > 0 for i in window]


class Plain(Objective):
    """GRPO without a clip, with a beta of its own."""

    name, form, default_beta, token_mean, betas = "plain", GROUPS, 0.25, True, []

    def loss(self, tokens: Any, config: Any) -> Any:
        self.betas.append(config.beta)
        ratio = tokens.log_ratio.exp().where(tokens.loss_mask, 0.0)
        loss = -(tokens.columns["advantages"][:, None] * ratio).sum() / tokens.num_items
        return loss, {"length": tokens.lengths, "one": 1}


def test_a_loss_of_groups_has_its_own_default_beta(tmp_path: Path):
    Plain.betas.clear()
    trainer_with(Plain(), tmp_path, beta=None, max_steps=1).train()
    assert set(Plain.betas) == {0.25}


def test_a_loss_in_the_config_takes_the_settings_of_its_form(tmp_path: Path):
    config = tiny_config(tmp_path, objective=Plain(), scale_rewards="none", max_steps=1)
    data = records("grpo", 10)
    trainer = HumanlineTrainer(tiny_model(), config, train_dataset=data, processing_class=tiny_tokenizer())
    trainer.train()
    first, second = trainer.train_examples[:2]
    assert first.weight == (first.reward - second.reward) / 2
    assert trainer.state.log_history[0]["one"] == 1
    assert replace(config, beta=0.5).make_objective() is config.objective


def at_the_reference(*lengths: int, **given: Any) -> LossInputs:
    """Return sequences of so many tokens, whose policy is the reference."""
    logp = TokenLogp(torch.zeros(1, sum(lengths), requires_grad=True))
    ids, bounds = torch.zeros(1, sum(lengths), dtype=torch.int64), torch.tensor([0, *lengths]).cumsum(0)
    return LossInputs(logp, TokenLogp(logp.logp.detach()), ids, ids == 0, cu_seqlens=bounds, **given)


def test_a_token_mean_has_the_divisor_of_its_step_and_weighs_its_tokens(tmp_path: Path):
    columns = {"advantages": torch.tensor([1.0, 7.0, 2.0])}
    inputs = at_the_reference(1, 0, 2, columns=columns, num_items=torch.tensor(8.0))
    out = Plain().compute(inputs, tiny_config(tmp_path))
    assert out.loss == -(1 + 2 * 2) / 8
    assert out.metrics["loss"] == (-5, 3)
    assert out.metrics["length"] == (3, 3)
    assert out.metrics["one"] == (3, 3)


def test_a_loss_perceives_by_the_sampling_of_its_inputs(tmp_path: Path):
    inputs = at_the_reference(1, 2, columns={}, sampling=HumanlineSampling(draws=torch.ones(2, 1, 3)))
    out = APOZero().compute(inputs, tiny_config(tmp_path))
    assert out.metrics["humanline/clamped_low"] == (3, 3)  # rejected on both sides
    assert out.metrics["humanline/clamped_high"] == (0, 3)
    empty = at_the_reference(0, 0, columns={}, sampling=HumanlineSampling(draws=torch.ones(2, 1, 0)))
    assert APOZero().compute(empty, tiny_config(tmp_path)).metrics["humanline/clamped_low"] == (0, 0)


def test_a_mean_over_pairs_weighs_its_pairs(tmp_path: Path):
    out = APOZero().compute(at_the_reference(1, 2, 3, 1, columns={}), tiny_config(tmp_path))
    assert out.metrics["loss"] == (2, 2)


@pytest.mark.parametrize("size", [3, 8])
def test_an_evaluation_of_a_token_mean_does_not_depend_on_its_batch_size(tmp_path: Path, size: int):
    evaluated = []
    for batch_size in (size, 10):
        settings = {"max_steps": 2, "per_device_eval_batch_size": batch_size}
        trainer = trainer_with(Plain(), tmp_path / str(batch_size), **settings)
        trainer.train()
        evaluated.append(trainer.evaluate()["eval_loss"])
    assert evaluated[0] == pytest.approx(evaluated[1], rel=1e-5)  # float32 sums in another order


def test_a_run_of_a_class_that_cannot_be_imported_is_shown_and_resumed(tmp_path: Path):
    class Local(APOZero):
        name = "local"

        def __init__(self, margin: float) -> None:
            self.margin = margin

    tiny_model().save_pretrained(tmp_path / "start")
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in records("dpo", 10)), encoding="utf-8")

    def run(name: str, **more: Any) -> HumanlineTrainer:
        settings = {"model": str(tmp_path / "start"), "dataset": str(data), "save_strategy": "steps", "save_steps": 3}
        config = tiny_config(tmp_path / name, **settings)
        trainer = HumanlineTrainer(args=config, processing_class=tiny_tokenizer(), objective=Local(0.5))
        trainer.train(**more)
        return trainer

    whole = run("whole")
    page = show_run(tmp_path / "whole", step=3).read_text(encoding="utf-8")
    assert "local" in page
    assert page.count("<h3>chosen</h3>") == 2
    shutil.copytree(tmp_path / "whole" / "checkpoint-3", tmp_path / "cut" / "checkpoint-3")
    resumed = run("cut", resume_from_checkpoint=True)
    assert losses(resumed)[-3:] == losses(whole)[-3:]
    assert pickle.loads(pickle.dumps(whole.args)).objective == "local"


def test_a_loss_with_random_numbers_or_a_state_is_no_fault_and_starts_the_run_fresh(tmp_path: Path):
    class Noisy(Objective):
        name, form = "noisy", PAIRS

        def __init__(self) -> None:
            self.steps = 0

        def loss(self, tokens: Any, config: Any) -> Any:
            if torch.is_grad_enabled():
                self.steps += 1
            noise = torch.rand_like(tokens.log_ratio)
            return -(noise * tokens.log_ratio).sum() / tokens.num_items, {}

    noisy = Noisy()
    trainer_with(noisy, tmp_path).train()
    assert noisy.steps == 6


# Bad input: an error before the first step names the part


def loss_that(compute: Any, form: Any = PAIRS) -> type[Objective]:
    return type("Mine", (Objective,), {"name": "mine", "form": form, "loss": compute})


@pytest.mark.parametrize(
    ("objective", "error", "said"),
    [
        (object(), TypeError, "expected an instance of humanline_fused.training.Objective, got object"),
        (type("Mine", (Objective,), {"form": PAIRS})(), TypeError, r"Mine.name: expected a string, got None"),
        (type("Mine", (Objective,), {"name": "mine"})(), TypeError, r"Mine.form: expected PAIRS, LABELS or GROUPS"),
        (type("Mine", (Objective,), {"name": "m", "form": PAIRS})(), TypeError, r"Mine.loss: expected a method loss"),
        (loss_that(lambda self, tokens, config: tokens.log_ratio.sum())(), TypeError, "expected a loss and a mapping"),
        (
            loss_that(lambda self, tokens, config: (tokens.sums(tokens.log_ratio), {}))(),
            TypeError,
            r"Mine.loss: expected a scalar loss, a tensor of shape \[\], got \[4\]",
        ),
        (loss_that(lambda self, tokens, config: (0.5, {}))(), TypeError, "expected a scalar loss, .* got float"),
        (
            loss_that(lambda self, tokens, config: (tokens.log_ratio.detach().sum(), {}))(),
            TypeError,
            "Mine.loss: expected a loss with a graph to the policy's log-probs, got one without",
        ),
        (
            loss_that(lambda self, tokens, config: (tokens.log_ratio.sum().log(), {}))(),
            ValueError,
            r"Mine.loss: expected a finite loss and gradient where the policy is the reference, .* got -inf",
        ),
        (
            loss_that(lambda self, tokens, config: (tokens.log_ratio.mean(), {}))(),
            ValueError,
            "expected a loss of the tokens that loss_mask counts alone, .* divide by tokens.lengths",
        ),
        (
            loss_that(lambda self, tokens, config: (tokens.log_ratio.sum(), {"mine": "low"}))(),
            TypeError,
            "metric 'mine': expected a number, a tensor with entries or a Weighted, got 'low'",
        ),
        (
            loss_that(lambda self, tokens, config: (tokens.columns["desirable"].sum(), {}))(),
            ValueError,
            "Mine.loss failed on the first batch: KeyError: 'desirable'",
        ),
    ],
)
def test_a_loss_that_lacks_a_part_is_refused_before_the_first_step(
    tmp_path: Path, objective: Any, error: type[Exception], said: str
):
    trained: list[HumanlineTrainer] = []

    def train() -> None:
        trained.append(trainer_with(objective, tmp_path))
        trained[0].train()

    with pytest.raises(error, match=said):
        train()
    start = tiny_model().state_dict()
    for trainer in trained:
        assert trainer.state.global_step == 0
        assert all(torch.equal(start[name], tensor) for name, tensor in trainer.model.state_dict().items())


@pytest.mark.parametrize(
    ("name", "arguments", "error", "said"),
    [
        ("ktoo", None, ValueError, r"expected 'dpo', 'kto', 'grpo' or 'module:Class' .* did you mean kto\?"),
        ("tests.user_loss:Nothing", None, ValueError, "to be a class that can be imported"),
        ("tests.user_loss:NUMBER", None, TypeError, "to be a subclass of humanline_fused.training.Objective"),
        ("tests.user_loss:APOZero", {"tau": 1}, TypeError, "APOZero does not take {'tau': 1}"),
    ],
)
def test_an_objective_that_cannot_be_found_is_named_in_the_error(
    name: str, arguments: Any, error: type[Exception], said: str
):
    with pytest.raises(error, match=said):
        find_objective(name, arguments)


def test_settings_of_another_objective_or_two_objectives_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"epsilon: expected 0.2 \(a setting of grpo, not of apo_zero\), got 0.1"):
        tiny_config(tmp_path, objective="tests.user_loss:APOZero", epsilon=0.1)
    with pytest.raises(ValueError, match=r"objective_kwargs: expected None with objective='dpo'"):
        tiny_config(tmp_path, objective_kwargs={"margin": 1})
    with pytest.raises(ValueError, match=r"objective_kwargs: expected a mapping in JSON, got '\[1\]'"):
        tiny_config(tmp_path, objective="tests.user_loss:APOZero", objective_kwargs="[1]")
    with pytest.raises(ValueError, match=r"objective: expected one, got 'kto' in args and '"):
        HumanlineTrainer(tiny_model(), tiny_config(tmp_path, objective="kto"), objective=APOZero())


CONFIG = SimpleNamespace(impl="eager", humanline_clamp=HumanlineClamp(), beta=0.1)


def random_inputs(form: Any, length: int) -> LossInputs:
    """Four sequences, the longest of which has ``length`` tokens, with advantages that add up to 0."""
    g = torch.Generator().manual_seed(0)
    bounds = torch.tensor([0, *torch.tensor([length, length // 2, length - 1, length]).cumsum(0).tolist()])
    logp = -torch.rand(1, int(bounds[-1]), generator=g)
    ids, mask = torch.zeros_like(logp, dtype=torch.long), torch.ones_like(logp, dtype=torch.bool)
    columns = {"advantages": torch.tensor([1.0, -1.0, 0.5, -0.5])} if form is GROUPS else {}
    return LossInputs(TokenLogp(logp), TokenLogp(logp), ids, mask, columns, cu_seqlens=bounds)


WRONG = {
    "mean over a row": lambda t: -t.log_ratio.mean(1).sigmoid().log().mean(),
    "ratio of masked tokens": lambda t: -t.log_ratio.exp().sum() / t.num_items,
    "mean over the batch": lambda t: (t.log_ratio - 0.5).square().mean(),
    "weighed ratios of masked tokens": lambda t: -(next(iter(t.columns.values()))[:, None] * t.log_ratio.exp()).sum(),
}
RIGHT = {
    "mean over a sequence": lambda t: -(t.sums(t.log_ratio) / t.lengths).sigmoid().log().mean(),
    "sum over a sequence": lambda t: -(0.1 * t.sums(t.log_ratio)).sigmoid().log().mean(),
    "mean over tokens": lambda t: (t.log_ratio.exp() - 1).sum() / t.num_items,
    "log-probs": lambda t: -t.logp.sum() / t.num_items,
    "large": lambda t: 1e6 * (t.sums(t.log_ratio) / t.lengths - 0.5).square().mean(),
}


@pytest.mark.parametrize("length", [4, 512, 2048])
@pytest.mark.parametrize("name", [*WRONG, *RIGHT])
def test_a_loss_that_counts_padding_is_refused_at_any_length_and_no_other(name: str, length: int):
    mine = loss_that(lambda self, tokens, config: ((WRONG | RIGHT)[name](tokens), {}), GROUPS)()
    if name in RIGHT:
        check_loss(mine, random_inputs(GROUPS, length), CONFIG)
        return
    with pytest.raises(ValueError, match="expected a loss of the tokens that loss_mask counts alone"):
        check_loss(mine, random_inputs(GROUPS, length), CONFIG)
