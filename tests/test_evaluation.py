"""Evaluation on held-out data against the initial policy."""

import copy
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import TrainerCallback

from humanline_fused.functional import token_logp
from humanline_fused.training import HumanlineTrainer
from humanline_fused.training.data.batch import Batch
from humanline_fused.training.data.plan import MicroBatch, evaluation_plan
from humanline_fused.training.objectives.rows import in_rows
from humanline_fused.training.pending import in_batches
from tests.batches import logits_of
from tests.error_budget import assert_within_budget
from tests.tiny_model import losses, records, tiny_config, tiny_model, tiny_trainer, trained


def held_out_log_ratios(
    trainer: HumanlineTrainer, dtype: torch.dtype = torch.float32
) -> tuple[Batch, torch.Tensor, torch.Tensor]:
    """Return the held-out data as one batch, log π_θ − log π_θ0 of its tokens, and their mask, in padded rows."""
    number = len(trainer.eval_examples)
    batch = trainer.windows.collate(trainer.eval_examples, MicroBatch(tuple(range(number)), tuple(range(number))))
    with torch.no_grad():
        start, now = (
            token_logp(logits_of(model.eval(), batch), batch.target_ids, batch.loss_mask)
            for model in (tiny_model().to(dtype), copy.deepcopy(trainer.model).to(dtype))
        )
    (ratios, mask) = in_rows([now - start, batch.loss_mask], batch.cu_seqlens)
    return batch, ratios, mask


Evaluated = Callable[[str], tuple[HumanlineTrainer, list[dict[str, float]]]]


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Evaluated:
    """The trainer of an objective's finished run, and the log lines of its evaluations."""

    @functools.cache
    def ran(objective: str) -> tuple[HumanlineTrainer, list[dict[str, float]]]:
        settings = {"eval_strategy": "steps", "eval_steps": 2, "eval_on_start": True, "max_steps": 4}
        settings |= {"objective": objective, "eval_dataset": records(objective, 8, seed=5)}
        trainer = trained(tmp_path_factory.mktemp(objective), **settings)
        lines = [line for line in trainer.state.log_history if "eval_loss" in line]
        assert [line["step"] for line in lines] == [0, 2, 4]
        return trainer, lines

    return ran


def assert_reported(
    trainer: HumanlineTrainer,
    line: dict[str, float],
    name: str,
    value_of: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> None:
    """``value_of(log_ratio, loss_mask)`` stands in the line: within the budget of the longest sequence's log-probs.

    The slope of losses and rewards in a log-prob is at most beta, 0.5. That of k3, a mean over tokens, is less.
    """
    ratios = [held_out_log_ratios(trainer, dtype)[1:] for dtype in (torch.float32, torch.float64)]
    eager, oracle = (value_of(*ratio) for ratio in ratios)
    assert_within_budget(torch.tensor(line[name]), eager, oracle, name, log_probs=0.5 * size_of_log_probs(ratios[0][1]))


def size_of_log_probs(loss_mask: torch.Tensor) -> float:
    """Nats of a sequence, by both policies, each over a hundred words."""
    return 2 * math.log(100) * float(loss_mask.sum(-1).max())


def mean_k3(log_ratio: torch.Tensor, loss_mask: torch.Tensor) -> torch.Tensor:
    return (torch.exp(-log_ratio) + log_ratio - 1).sum() / loss_mask.sum()


@pytest.mark.parametrize("objective", ["dpo", "kto"])
def test_evaluation_rewards_compare_with_the_initial_policy(evaluated: Evaluated, objective: str):
    trainer, lines = evaluated(objective)
    assert lines[0]["eval_rewards_initial/margins"] == 0
    batch, _, _ = held_out_log_ratios(trainer)
    desirable = batch.columns["desirable"] if objective == "kto" else torch.arange(16) < 8

    def rewards(log_ratio: torch.Tensor) -> torch.Tensor:
        return 0.5 * log_ratio.clamp(-1.5, 1.5).sum(-1)

    assert_reported(trainer, lines[-1], "eval_rewards_initial/chosen", lambda r, _: rewards(r)[desirable].mean())
    assert_reported(trainer, lines[-1], "eval_rewards_initial/rejected", lambda r, _: rewards(r)[~desirable].mean())
    if objective == "dpo":
        assert lines[0]["eval_loss"] == pytest.approx(math.log(2), rel=torch.finfo(torch.float32).eps)
        assert lines[0]["eval_rewards_initial/accuracies"] == 0  # a tie is not a preference

        def loss(log_ratio: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
            chosen, rejected = rewards(log_ratio).chunk(2)
            return -torch.nn.functional.logsigmoid(chosen - rejected).mean()

        assert_reported(trainer, lines[-1], "eval_loss", loss)


def test_evaluation_of_grpo_compares_with_the_initial_policy(evaluated: Evaluated):
    trainer, lines = evaluated("grpo")
    assert lines[0]["eval_kl"] == 0
    assert_reported(trainer, lines[-1], "eval_kl", mean_k3)


def test_evaluation_gives_the_kl_to_the_initial_policy_without_a_second_model(evaluated: Evaluated, objective: str):
    trainer, lines = evaluated(objective)
    assert lines[0]["eval_kl_initial"] == 0
    assert all("eval_humanline/unclamped" in line for line in lines)
    assert_reported(trainer, lines[-1], "eval_kl_initial", mean_k3)


def test_evaluation_does_not_depend_on_the_batches_of_the_held_out_data(tmp_path: Path):
    evaluations = []
    for size in (3, 8):
        settings = {"eval_dataset": records("dpo", 8, 5), "per_device_eval_batch_size": size, "max_steps": 3}
        trainer = trained(tmp_path / str(size), **settings)
        metrics = trainer.evaluate()
        names = ("eval_loss", "eval_rewards_initial/chosen", "eval_rewards_initial/margins")
        evaluations.append(torch.tensor([metrics[name] for name in names]))
    _, log_ratio, loss_mask = held_out_log_ratios(trainer, torch.float64)
    chosen, rejected = (0.5 * log_ratio.clamp(-1.5, 1.5).sum(-1)).chunk(2)
    loss = -torch.nn.functional.logsigmoid(chosen - rejected)
    oracle = torch.stack([loss.mean(), chosen.mean(), (chosen - rejected).mean()])
    size = size_of_log_probs(loss_mask)
    assert_within_budget(evaluations[0], evaluations[1], oracle, "evaluation", log_probs=size)


def test_evaluating_a_finished_run_again_compares_with_its_initial_policy(tmp_path: Path):
    held_out = {"eval_dataset": records("dpo", 8, 5), "max_steps": 2}
    trainer = trained(tmp_path, **held_out)
    kept = (tmp_path / "initial_eval_logp.pt").read_bytes()
    again = tiny_trainer(tmp_path, model=trainer.model, **held_out).evaluate()
    for name in ("eval_loss", "eval_rewards_initial/margins"):
        assert again[name] == trainer.evaluate()[name]
    assert again["eval_rewards_initial/margins"] != 0
    assert (tmp_path / "initial_eval_logp.pt").read_bytes() == kept


def test_the_initial_scores_of_an_earlier_version_are_read(tmp_path: Path):
    settings: dict[str, Any] = {"eval_dataset": records("dpo", 8, 5), "layout": "padded", "max_steps": 2}
    trainer = trained(tmp_path, **settings)
    file = tmp_path / "initial_eval_logp.pt"
    state = torch.load(file, weights_only=True)
    batches = list(trainer.held_out.batches())
    micros = [micro for micro, _ in evaluation_plan(8, 3, rank=0, world_size=1)]
    packed = in_batches(state["scores"], micros, *trainer.held_out.settings)
    earlier = []
    for batch, scores in zip(batches, packed, strict=True):
        grid = torch.zeros(batch.input_ids.numel()).index_copy(0, batch.source, scores["ref_logp"][0])
        earlier.append({"ref_logp": grid.view(batch.input_ids.shape)})
    torch.save(state | {"scores": earlier}, file)
    again = tiny_trainer(tmp_path, model=trainer.model, **settings).evaluate()
    assert again["eval_loss"] == trainer.evaluate()["eval_loss"]
    assert again["eval_rewards_initial/margins"] != 0


@pytest.mark.parametrize("damage", ["zeros", "one bit", "one bit of the directory", "cut"])
def test_damaged_initial_scores_are_refused_in_one_line(tmp_path: Path, damage: str):
    settings = {"eval_dataset": records("dpo", 3, 5), "save_strategy": "steps", "save_steps": 1, "max_steps": 1}
    trained(tmp_path, **settings)
    file = tmp_path / "initial_eval_logp.pt"
    content = bytearray(file.read_bytes())
    if damage == "zeros":
        content = bytearray(len(content))
    elif damage == "cut":
        del content[len(content) // 2 :]
    elif damage == "one bit of the directory":
        content[content.index(b"PK\x01\x02") + 8] ^= 1 << 5
    else:
        scores = torch.load(file)["scores"][0]["ref_logp"][0]
        content[content.index(scores.numpy().tobytes())] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"^[^\n]*initial_eval_logp\.pt is damaged \([^\n]+another output_dir$"):
        trained(tmp_path, **settings, resume_from_checkpoint="auto")


def test_evaluation_before_training_writes_only_tokens_and_is_not_a_runs_baseline(tmp_path: Path):
    settings = {"eval_dataset": records("dpo", 8, 5), "overwrite_output_dir": True, "max_steps": 2}
    trainer = tiny_trainer(tmp_path, **settings)
    assert trainer.evaluate()["eval_rewards_initial/margins"] == 0
    assert [path.name for path in tmp_path.iterdir()] == ["tokens"]
    trainer.train()
    first = trainer.held_out.initial.scores
    trainer.train()  # a second run, from the end of the first
    again = trainer.held_out.initial.scores
    assert first is not None
    assert again is not None
    assert not torch.equal(again[0]["ref_logp"][0], first[0]["ref_logp"][0])


def test_evaluate_without_held_out_data_and_predict_are_refused(tmp_path: Path):
    trainer = tiny_trainer(tmp_path)
    with pytest.raises(ValueError, match=r"evaluate: expected an eval_dataset .*got none"):
        trainer.evaluate()
    with pytest.raises(NotImplementedError, match=r"predict: expected evaluate\(\)"):
        trainer.predict(Dataset.from_list(records("dpo", 2)))


def test_evaluating_does_not_change_the_training(tmp_path: Path):
    dropping = {"disable_dropout": False, "clamp": False, "max_steps": 3}
    plain = trained(tmp_path / "plain", model=tiny_model(attention_dropout=0.1), **dropping)
    settings = {"eval_dataset": records("dpo", 8, 5), "eval_strategy": "steps", "eval_steps": 1}
    watched = trained(tmp_path / "eval", model=tiny_model(attention_dropout=0.1), **dropping, **settings)
    assert losses(plain) == losses(watched)


# The metric of the best model


BEST = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps"}
BEST |= {"save_steps": 2, "max_steps": 2}


def judged(output_dir: Path, objective: str = "dpo", **settings: Any) -> HumanlineTrainer:
    held_out = settings.pop("eval_dataset", records(objective, 8, 5))
    return tiny_trainer(output_dir, objective=objective, eval_dataset=held_out, **BEST | settings)


def test_every_name_that_an_evaluation_gives_is_known_before_it_and_no_other(tmp_path: Path, objective: str):
    trainer = judged(tmp_path, objective, metric_for_best_model="reward")
    with pytest.raises(ValueError, match="metric_for_best_model: expected a metric of the evaluation") as error:
        trainer.train()
    known = str(error.value).partition("(")[2].partition(")")[0].split(", ")
    speed = {"eval_runtime", "eval_samples_per_second", "eval_steps_per_second"}
    assert set(known) == trainer.evaluate().keys() - speed - {"eval_model_preparation_time", "epoch"}
    assert str(error.value).endswith(", got 'reward'; did you mean eval_" + str(error.value).rpartition("eval_")[2])


@pytest.mark.parametrize("how", [BEST, BEST | {"dry_run": True}, {"load_best_model_at_end": False}, "best"])
def test_an_unknown_metric_of_the_best_model_is_refused_before_anything_is_written(tmp_path: Path, how: Any):
    settings = {"save_strategy": "best", "load_best_model_at_end": False} if how == "best" else how
    trainer = judged(tmp_path, metric_for_best_model="rewards/margins", **settings)
    with pytest.raises(ValueError, match=r"got 'rewards/margins'; did you mean eval_rewards_initial/margins\?"):
        trainer.train()
    assert not trainer.begun
    assert [file for file in tmp_path.rglob("*") if "tokens" not in str(file)] == []


@pytest.mark.parametrize("name", ["loss", "eval_kl_initial", "rewards_initial/margins", "eval_runtime"])
def test_a_metric_is_named_with_or_without_eval(tmp_path: Path, name: str):
    trainer = judged(tmp_path, metric_for_best_model=name)
    trainer.train()
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-2")


def test_a_metric_that_the_held_out_data_never_give_is_unknown(tmp_path: Path):
    """Undesirable completions alone have no chosen rewards, and no margins."""
    rows = [row | {"label": False} for row in records("kto", 8, 5)]
    for name in ("rewards_initial/chosen", "rewards_initial/margins"):
        with pytest.raises(ValueError, match=rf"\(eval_humanline/clamped_high, .*, got '{name}'; did you mean"):
            judged(tmp_path, "kto", eval_dataset=rows, metric_for_best_model=name).train()
    judged(tmp_path, "kto", metric_for_best_model="rewards_initial/margins", dry_run=True).train()


class OwnMetrics(TrainerCallback):
    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        kwargs["metrics"]["eval_words"] = 1.0


def test_a_callback_that_evaluates_may_give_the_metric(tmp_path: Path):
    trainer = judged(tmp_path, metric_for_best_model="words", callbacks=[OwnMetrics()])
    trainer.train()
    assert trainer.state.best_metric == 1


@pytest.mark.parametrize(
    ("name", "greater"),
    [
        ("loss", False),
        ("eval_loss", False),
        ("kl_initial", False),
        ("eval_rewards_initial/rejected", False),
        ("rewards_initial/margins", True),
        ("eval_rewards_initial/accuracies", True),
    ],
)
def test_the_better_of_two_values_is_known_by_the_name_unless_it_is_said(tmp_path: Path, name: str, greater: bool):
    assert tiny_config(tmp_path, metric_for_best_model=name).greater_is_better is greater
    assert tiny_config(tmp_path, metric_for_best_model=name, greater_is_better=not greater).greater_is_better != greater


@pytest.mark.parametrize("dry_run", [False, True])
def test_an_evaluation_without_data_and_the_best_without_an_evaluation_are_refused(tmp_path: Path, dry_run: bool):
    with pytest.raises(ValueError, match="eval_dataset"):
        tiny_trainer(tmp_path, eval_strategy="steps", eval_steps=1, dry_run=dry_run).train()
    with pytest.raises(ValueError, match=r"eval_strategy: expected 'steps' or 'epoch' with save_strategy='best'"):
        tiny_config(tmp_path, save_strategy="best", metric_for_best_model="loss", dry_run=dry_run)
    with pytest.raises(ValueError, match="load_best_model_at_end requires the save and eval strategy to match"):
        tiny_config(tmp_path, load_best_model_at_end=True, eval_strategy="epoch", dry_run=dry_run)
