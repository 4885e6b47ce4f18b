"""The trainer: the reference of each loss, the average of a step, and refused input."""

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import TrainerCallback

from humanline_fused.functional import token_logp
from humanline_fused.reference import CopyReference
from humanline_fused.reference import sync as sync_module
from humanline_fused.training import HumanlineConfig, HumanlineTrainer
from humanline_fused.training import windows as windows_module
from humanline_fused.training.data.batch import Batch, collate
from humanline_fused.training.data.plan import MicroBatch
from humanline_fused.training.run.reference_sync import ReferenceSync
from humanline_fused.training.scoring import Scorer
from tests.batches import logits_of, sums
from tests.error_budget import FLOAT32_EPSILON, assert_within_budget, rounding_of_sum
from tests.tiny_model import losses, records, tiny_config, tiny_model, tiny_tokenizer, tiny_trainer, trained

# Bounds that bind at the tiny runs' learning rate.
TIGHT = {"log_epsilon_P": -0.15, "log_epsilon_R": 0.1}


def weights(trainer: HumanlineTrainer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture
def outputs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Results of the loss for every micro-batch, in order."""
    seen: list[Any] = []
    compute = Scorer.loss

    def record(scorer: Scorer, model: torch.nn.Module, batch: Batch) -> Any:
        given = compute(scorer, model, batch)
        seen.append(given[1])
        return given

    monkeypatch.setattr(Scorer, "loss", record)
    return seen


# The reference (paper, section 4: the sync)


@pytest.mark.parametrize(
    ("objective", "sync_every", "accumulation"),
    [("dpo", 1, 2), ("dpo", 4, 1), ("kto", 3, 2), ("kto", 1, 1), ("grpo", 4, 2), ("grpo", 3, 1)],
)
def test_look_ahead_and_copy_give_bitwise_the_same_losses_and_weights_across_epochs(
    tmp_path: Path, objective: str, sync_every: int, accumulation: int
):
    runs = [
        trained(
            tmp_path / reference,
            objective=objective,
            reference=reference,
            sync_every=sync_every,
            gradient_accumulation_steps=accumulation,
            num_examples=8,
            **TIGHT,
        )
        for reference in ("lookahead", "copy")
    ]
    assert runs[0].plan.steps_per_epoch < 5
    assert losses(runs[0]) == losses(runs[1])
    assert same(weights(runs[0]), weights(runs[1]))


def test_dropout_in_training_keeps_look_ahead_and_copy_equal(tmp_path: Path):
    settings = {"disable_dropout": False, "clamp": False, "sync_every": 2, "max_steps": 3}
    ahead, copied = (
        trained(tmp_path / kind, reference=kind, model=tiny_model(attention_dropout=0.1), **settings)
        for kind in ("lookahead", "copy")
    )
    without = trained(tmp_path / "without", sync_every=2, max_steps=3)
    assert losses(ahead) == losses(copied) != losses(without)


def test_a_look_ahead_over_the_whole_run_is_the_frozen_reference(tmp_path: Path, objective: str):
    ahead = trained(tmp_path / "a", objective=objective, sync_every=100, max_steps=3)
    frozen = trained(tmp_path / "b", objective=objective, reference="frozen", max_steps=3)
    assert losses(ahead) == losses(frozen)
    assert same(weights(ahead), weights(frozen))


def check_that_the_reference_lags(outputs: list[Any]) -> None:
    """Assert that step 0 compares the policy with itself, and every later loss with an earlier policy."""
    largest = [float((out.logp - out.ref_logp).abs().max()) for out in outputs]
    assert largest[0] == 0
    assert all(log_ratio > 0 for log_ratio in largest[1:])


@pytest.mark.parametrize("reference", ["lookahead", "copy", "frozen"])
def test_the_reference_lags_behind_the_policy_in_every_step_after_the_first(
    tmp_path: Path, outputs: list[Any], reference: str
):
    trained(tmp_path, reference=reference, max_steps=3)
    check_that_the_reference_lags(outputs)


def test_syncing_after_the_step_is_caught_by_the_lag(
    tmp_path: Path, outputs: list[Any], monkeypatch: pytest.MonkeyPatch
):
    def after_the_step(self: ReferenceSync, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.reference.before_optimizer_step(state.global_step, kwargs["model"])

    monkeypatch.setattr(ReferenceSync, "on_step_end", after_the_step)
    monkeypatch.delattr(ReferenceSync, "on_pre_optimizer_step")
    trained(tmp_path, reference="copy", sync_every=1, max_steps=2)
    with pytest.raises(AssertionError):
        check_that_the_reference_lags(outputs)


class Witness(TrainerCallback):
    """Records the policy's weights before every update."""

    def __init__(self) -> None:
        self.before: list[dict[str, torch.Tensor]] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.before.append({name: p.detach().clone() for name, p in kwargs["model"].named_parameters()})


def test_a_sync_at_step_t_copies_theta_t_and_shares_no_storage__oracle_f(tmp_path: Path):
    witness = Witness()
    trainer = trained(tmp_path, reference="copy", sync_every=2, max_steps=4, callbacks=[witness])
    assert isinstance(trainer.reference, CopyReference)
    reference = dict(trainer.reference.model.named_parameters())
    assert same({name: p.detach() for name, p in reference.items()}, witness.before[2])
    assert not same(witness.before[2], witness.before[3])
    policy = {p.data_ptr() for p in trainer.model.parameters()}
    assert not policy & {p.data_ptr() for p in reference.values()}


@pytest.mark.parametrize("accumulation", [2, 5])
def test_the_cadence_counts_optimizer_steps_not_micro_steps__oracle_g(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accumulation: int
):
    synced: list[int] = []
    monkeypatch.setattr(sync_module, "sync_reference_", lambda *models: synced.append(trainer.state.global_step))
    settings = {"sync_every": 2, "gradient_accumulation_steps": accumulation, "max_steps": 4}
    trainer = tiny_trainer(tmp_path, reference="copy", **settings)
    trainer.train()
    assert synced == [0, 2]


def test_a_frozen_reference_is_the_initial_policy(tmp_path: Path, outputs: list[Any]):
    trainer = trained(tmp_path, reference="frozen", max_steps=3)
    (batch,) = trainer._window(2)
    with torch.no_grad():
        eager, oracle = (
            token_logp(logits_of(tiny_model().eval().to(dtype), batch), batch.target_ids, batch.loss_mask)
            for dtype in (torch.float32, torch.float64)
        )
    assert_within_budget(outputs[2].ref_logp, eager, oracle, "ref_logp")


# The clamp, and the paper's ablation


def test_without_clamp_and_sync_the_loss_is_the_base_loss(tmp_path: Path, outputs: list[Any]):
    plain = trained(tmp_path / "plain", reference="frozen", clamp=False, max_steps=3)
    for step, (out, loss) in enumerate(zip(outputs[:3], losses(plain), strict=True)):
        (batch,) = plain._window(step)
        chosen, rejected = sums(out.logp.double() - out.ref_logp.double(), batch).chunk(2)
        base = -torch.nn.functional.logsigmoid(0.5 * (chosen - rejected)).mean()
        # The slope of the loss in a log-prob is at most beta.
        log_probs = 0.5 * float(sums(out.logp.abs() + out.ref_logp.abs(), batch).max())
        assert_within_budget(torch.tensor(loss), base.float(), base, "loss", log_probs=log_probs)
    open_bounds = {"log_epsilon_P": -math.inf, "log_epsilon_R": math.inf}
    opened = trained(tmp_path / "open", reference="frozen", max_steps=3, **open_bounds)
    assert losses(opened) == losses(plain)
    assert same(weights(opened), weights(plain))


def test_clamp_and_sync_are_switched_separately(tmp_path: Path, objective: str):
    settings = {"objective": objective, "max_steps": 3, "log_epsilon_P": -0.01, "log_epsilon_R": 0.01}
    combinations = itertools.product((True, False), ({"sync_every": 1}, {"reference": "frozen"}))
    runs = [
        trained(tmp_path / str(number), clamp=clamp, **reference, **settings)
        for number, (clamp, reference) in enumerate(combinations)
    ]
    assert not any(same(weights(a), weights(b)) for a, b in itertools.combinations(runs, 2))


def kl_of(out: Any) -> float:
    total, weight = out.metrics["kl"]
    return float(total / weight)


def test_the_tokens_of_ktos_reference_point_are_clamped_too(tmp_path: Path, outputs: list[Any]):
    settings = {"objective": "kto", "reference": "frozen", "max_steps": 3}
    trained(tmp_path / "open", clamp=False, **settings)
    trained(tmp_path / "shut", log_epsilon_P=-0.0, log_epsilon_R=0.0, **settings)
    assert max(kl_of(out) for out in outputs[:3]) > 0
    assert [kl_of(out) for out in outputs[3:]] == [0.0] * 3


# A step


def test_a_step_averages_over_its_pairs_or_tokens_for_any_micro_batch_size(tmp_path: Path, objective: str):
    first = {}
    for size in (4, 2, 1) if objective != "kto" else (4, 2):  # a KTO micro-batch of one has no mismatched pair
        layout = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 4 // size, "max_steps": 1}
        model = tiny_model().double()
        trainer = trained(tmp_path / str(size), objective=objective, model=model, max_grad_norm=1e9, **layout)
        first[size] = [trainer.state.log_history[0][name] for name in ("loss", "grad_norm")]
    for cut_up in first.values():
        # float64 but for the log, which adds up four losses in float32 at most.
        assert cut_up == pytest.approx(first[4], rel=4 * FLOAT32_EPSILON)


def test_grpos_tokens_weigh_the_same_in_every_micro_batch_of_a_step(tmp_path: Path, outputs: list[Any]):
    settings = {"objective": "grpo", "per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
    trainer = trained(tmp_path, max_steps=1, **settings)
    examples = [trainer.train_examples[i] for ids in trainer.plan.global_window(0) for i in ids]
    tokens = [len(e.completions[0]) for e in examples]
    assert len(set(tokens)) > 1
    # The ratio is 1 in the first step, so a token's loss is minus its advantage.
    advantages = [-e.weight for n, e in zip(tokens, examples, strict=True) for _ in range(n)]
    rounding = rounding_of_sum(*advantages) / sum(tokens)
    assert losses(trainer)[0] == pytest.approx(sum(advantages) / sum(tokens), abs=rounding)


def test_padding_tokens_do_not_affect_a_run(tmp_path: Path, objective: str):
    settings = {"objective": objective, "layout": "padded", "max_steps": 3}
    runs = [tiny_trainer(tmp_path / str(pad), **settings) for pad in (0, 57)]
    runs[1].windows.pad_token_id = 57
    assert (runs[1]._window(0)[0]["input_ids"] == 57).any()
    for run in runs:
        run.train()
    assert losses(runs[0]) == losses(runs[1])
    assert same(weights(runs[0]), weights(runs[1]))


@pytest.mark.parametrize("reference", ["lookahead", "copy"])
def test_each_batch_is_made_once_for_scoring_and_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reference: str
):
    collated: list[tuple[int, ...]] = []

    def counted(examples: Any, micro: MicroBatch, *args: Any, **sizes: Any) -> Batch:
        collated.append(micro.ids)
        return collate(examples, micro, *args, **sizes)

    monkeypatch.setattr(windows_module, "collate", counted)
    trainer = trained(tmp_path, reference=reference, gradient_accumulation_steps=2, max_steps=3)
    assert collated == [micro.ids for step in range(3) for micro in trainer.plan.window(step, 0)]


def test_no_forward_pass_without_gradient_has_dropout(tmp_path: Path):
    seen: set[tuple[bool, bool]] = set()
    settings = {"objective": "kto", "disable_dropout": False, "clamp": False, "max_steps": 2}
    trainer = tiny_trainer(tmp_path, model=tiny_model(attention_dropout=0.1), **settings)
    trainer.model.register_forward_hook(lambda model, *_: seen.add((torch.is_grad_enabled(), model.training)))
    trainer.train()
    assert seen == {(True, True), (False, False)}


def test_dropout_is_turned_off_in_modules_and_in_attention(tmp_path: Path):
    trainer = tiny_trainer(tmp_path, model=tiny_model(attention_dropout=0.3))
    assert {m.attention_dropout for m in trainer.model.modules() if hasattr(m, "attention_dropout")} == {0.0}


# Bad input


def test_a_reference_model_of_another_shape_is_refused_before_the_run(tmp_path: Path):
    with pytest.raises(ValueError, match=r"same shapes.*mlp"):
        tiny_trainer(tmp_path / "run", reference="copy", reference_model=tiny_model(intermediate_size=40))
    with pytest.raises(ValueError, match="expected None with reference='lookahead'"):
        tiny_trainer(tmp_path / "run", reference_model=tiny_model())


@pytest.mark.parametrize("reference", ["copy", "frozen"])
def test_the_policy_as_its_own_reference_is_refused_and_stays_trainable(tmp_path: Path, reference: str):
    policy = tiny_model()
    with pytest.raises(ValueError, match="expected the reference to have its own storage"):
        tiny_trainer(tmp_path, model=policy, reference=reference, reference_model=policy)
    assert all(parameter.requires_grad for parameter in policy.parameters())


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused_with_the_token(tmp_path: Path):
    said = r"training example 0: expected token ids below 90, the rows of the model.*, got token 'w91' \(id 97\): use"
    with pytest.raises(ValueError, match=said):
        tiny_trainer(tmp_path, model=tiny_model(vocab_size=90))


def test_data_that_cannot_be_read_ahead_are_refused_before_anything_is_written(tmp_path: Path):
    stream = Dataset.from_list(records("dpo", 10)).to_iterable_dataset()
    config = tiny_config(tmp_path / "run")
    with pytest.raises(TypeError, match="seen ahead"):
        HumanlineTrainer(tiny_model(), config, stream, processing_class=tiny_tokenizer())
    assert not (tmp_path / "run").exists()


def test_several_gpus_in_one_process_are_refused_with_the_launch_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(HumanlineConfig, "n_gpu", 4)
    with pytest.raises(ValueError, match="accelerate launch --num_processes 4 -m humanline_fused train"):
        tiny_trainer(tmp_path)


def test_kto_needs_two_completions_for_a_mismatched_pair(tmp_path: Path):
    with pytest.raises(ValueError, match="at least 2 completions in a global micro-batch"):
        tiny_trainer(tmp_path, objective="kto", per_device_train_batch_size=1, gradient_accumulation_steps=4)


def test_evaluating_other_data_than_those_scored_at_the_start_is_refused(tmp_path: Path):
    trainer = trained(tmp_path, eval_dataset=records("dpo", 4, 5), max_steps=1)
    with pytest.raises(ValueError, match="expected the eval_dataset of the start"):
        trainer.evaluate(records("dpo", 4, 6))  # pyright: ignore[reportArgumentType]
