"""TRL's trainers with humanline equal TRL bitwise when it is off, and HumanlineTrainer when it is on."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM
from trl.trainer.utils import FusedCausalLMOutput

from humanline_fused.integrations.trl import Humanline, LogRatios
from humanline_fused.integrations.trl.log_ratios import zero_reference
from humanline_fused.reference import AdapterReference
from humanline_fused.training.data.plan import BatchPlan, BatchSizes
from tests.error_budget import assert_within_budget
from tests.ranks import keep, on_ranks
from tests.tiny_model import losses, records, tiny_model, tiny_trainer
from tests.tiny_trl import (
    ACCUMULATION,
    BATCH,
    SETTINGS,
    STEPS,
    TIGHT,
    TRAINERS,
    adapted,
    logged,
    make,
    ours,
    run,
    same,
    start,
    weights,
)


@pytest.fixture(params=["dpo", "kto"])
def objective(request: pytest.FixtureRequest) -> str:
    return request.param


# Off


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Any]]:
    """The folder of a model, and TRL's own run of an objective that starts from it."""

    @functools.cache
    def ran(objective: str) -> tuple[Path, Any]:
        kind, _, config = TRAINERS[objective]
        folder = tmp_path_factory.mktemp("theirs")
        model = AutoModelForCausalLM.from_pretrained(start(folder / "start"))
        return folder / "start", run(make(kind, config, folder / "run", model=model))

    return ran


@pytest.mark.parametrize("off", [None, Humanline(float("-inf"), float("inf"), sync_every=None)], ids=["None", "wide"])
def test_with_humanline_off_losses_and_weights_are_trls_bitwise(
    objective: str, off: Humanline | None, theirs: Callable[[str], tuple[Path, Any]], tmp_path: Path
):
    folder, expected = theirs(objective)
    actual = run(ours(objective, tmp_path, model=AutoModelForCausalLM.from_pretrained(folder), humanline=off))
    assert losses(actual) == losses(expected)
    assert len(set(losses(actual))) == STEPS
    assert same(weights(actual), weights(expected))


# On


def own_trainer(objective: str, output_dir: Path, dtype: torch.dtype, model: Any = None, **settings: Any) -> Any:
    shared = {name: value for name, value in SETTINGS.items() if name != "train_sampling_strategy"} | settings
    return tiny_trainer(
        output_dir,
        num_examples=STEPS * BATCH * ACCUMULATION,
        model=(tiny_model() if model is None else model).to(dtype),
        objective=objective,
        head="logits",
        **{"reference": "copy"} | TIGHT | shared,
    )


def in_order_of(plan: BatchPlan, objective: str) -> list[dict[str, Any]]:
    """Return the records in the format of HumanlineTrainer."""
    rows = records(objective, STEPS * BATCH * ACCUMULATION)
    return [rows[i] for step in range(STEPS) for micro in plan.window(step, 0) for i in micro.ids]


def assert_same_run(actual: Any, plain: Any, oracle: Any, names: tuple[str, ...] = ()) -> None:
    """``actual`` errs as our own float32 run does against the float64 run, and rounds.

    A loss is made of the log-probs of a pair, and a gradient has a coefficient that is made of them.
    """
    log_probs = sum(max(map(abs, logged(oracle, f"logps/{side}"))) for side in ("chosen", "rejected"))
    for name in ("loss", *names):
        runs = [torch.tensor(logged(trainer, name)) for trainer in (actual, plain, oracle)]
        assert_within_budget(runs[0], runs[1], runs[2], name, log_probs=log_probs)
    for name, expected in weights(oracle).items():
        assert_within_budget(weights(actual)[name], weights(plain)[name], expected, name, log_probs=log_probs)


SIDES = ("logps/chosen", "logps/rejected", "rewards/chosen", "rewards/rejected")
SHARES = tuple(f"humanline/{name}" for name in ("unclamped", "clamped_low", "clamped_high", "mean_ratio"))


# TRL averages a step's metrics over micro-batches without weights. Micro-batches of pairs have equal weights in the
# metrics of a side, and one micro-batch in all.
@pytest.mark.parametrize(
    ("objective", "sync_every", "accumulation", "metrics"),
    [("dpo", 3, 2, SIDES), ("kto", 1, 1, SIDES + SHARES)],
)
def test_losses_and_weights_equal_those_of_humanline_trainer_with_a_copied_reference(
    objective: str, sync_every: int, accumulation: int, metrics: tuple[str, ...], tmp_path: Path
):
    settings = {"sync_every": sync_every, "gradient_accumulation_steps": accumulation}
    plain = own_trainer(objective, tmp_path / "float32", torch.float32, **settings)
    oracle = own_trainer(objective, tmp_path / "float64", torch.float64, **settings)
    humanline = Humanline(**TIGHT, sync_every=sync_every)
    actual = ours(
        objective,
        tmp_path / "trl",
        rows=in_order_of(plain.plan, objective),
        gradient_accumulation_steps=accumulation,
        humanline=humanline,
    )
    for trainer in (actual, plain, oracle):
        run(trainer)
    assert_same_run(actual, plain, oracle, metrics)
    assert min(logged(actual, "humanline/unclamped")) < 0.8


PLAN = BatchPlan(STEPS * BATCH * ACCUMULATION, BatchSizes(BATCH, ACCUMULATION), seed=42)


def train_on_ranks(folder: Path, ranks: int) -> None:
    """Train on the same micro-batches, in sequence or in parallel."""
    settings = {"rows": in_order_of(PLAN, "dpo"), "gradient_accumulation_steps": ACCUMULATION // ranks}
    trainer = run(ours("dpo", folder / str(ranks), humanline=Humanline(**TIGHT, sync_every=3), **settings))
    assert trainer.args.world_size == ranks
    keep(trainer, folder / f"{ranks}.pt")


def test_two_processes_train_as_one_process_does(tmp_path: Path):
    on_ranks(tmp_path, (train_on_ranks, 1), (train_on_ranks, 2))
    one, two = (torch.load(tmp_path / f"{ranks}.pt") for ranks in (1, 2))
    oracle = own_trainer("dpo", tmp_path / "float64", torch.float64, sync_every=3)
    assert oracle.plan == PLAN
    run(oracle)
    log_probs = sum(max(map(abs, logged(oracle, f"logps/{side}"))) for side in ("chosen", "rejected"))
    expected = torch.cat([p.flatten() for p in oracle.model.state_dict().values()])
    assert_within_budget(two["weights"], one["weights"], expected, "weights", log_probs=log_probs)
    for name in ("logps/chosen", "humanline/unclamped"):
        assert two["first"][name] == pytest.approx(one["first"][name], rel=torch.finfo(torch.float32).eps)


def test_the_sync_comes_before_the_update_so_the_second_step_has_log_ratios(objective: str, tmp_path: Path):
    trainer = run(ours(objective, tmp_path, max_steps=2, humanline=Humanline(sync_every=1)))
    first, second = logged(trainer, "rewards/chosen")
    assert first == 0.0
    assert abs(second) > 1e-3
    assert not trainer.ref_model.training
    reference = dict(trainer.ref_model.named_parameters())
    assert not torch.equal(reference["lm_head.weight"], weights(trainer)["lm_head.weight"])
    assert not torch.equal(reference["lm_head.weight"], tiny_model().lm_head.weight)


def test_each_token_is_clamped_before_the_sum_and_a_masked_token_is_zero():
    labels = torch.tensor([[-100, -100, 7, 8, 9]])

    def model(*log_probs: float) -> Callable[..., Any]:
        return lambda **inputs: FusedCausalLMOutput(log_probs=torch.tensor([log_probs]))

    policy, reference = model(0.0, -1.0, -4.0, -2.0), model(0.0, -2.0, -1.0, -2.25)
    ratios = LogRatios(policy, lambda forward: forward(reference).log_probs, Humanline(-0.5, 0.5))
    assert ratios(labels=labels, fused_lm_head=True).log_probs.tolist() == [[0.0, 0.5, -0.5, 0.25]]
    assert ratios.last.logp.sum().item() == -7.0
    shares = (ratios.last.clamped_low_fraction, ratios.last.clamped_high_fraction)
    assert [share.item() for share in shares] == pytest.approx([1 / 3, 1 / 3])
    assert zero_reference(labels=labels).log_probs.tolist() == [[0.0, 0.0, 0.0, 0.0]]


def test_with_trls_forward_pass_the_displayed_log_probs_are_trls_bitwise(
    objective: str, theirs: Callable[[str], tuple[Path, Any]], tmp_path: Path
):
    _, expected = theirs(objective)
    actual = run(ours(objective, tmp_path, max_steps=1, humanline=Humanline(head="trl")))
    for name in ("logps/chosen", "logps/rejected"):
        assert logged(actual, name) == logged(expected, name)[:1]
        assert logged(actual, name)[0] < -5


def test_an_evaluation_reports_the_clamp_and_can_return_logits(objective: str, tmp_path: Path):
    rows = Dataset.from_list(records(objective, 4, seed=1))
    trainer = run(ours(objective, tmp_path, eval_dataset=rows, humanline=Humanline(**TIGHT), max_steps=3))
    metrics = trainer.evaluate()
    shares = [metrics[f"eval_humanline/{name}"] for name in ("unclamped", "clamped_low", "clamped_high")]
    assert sum(shares) == pytest.approx(1.0)
    assert shares[0] < 1
    batch = trainer._prepare_inputs(next(iter(trainer.get_eval_dataloader())))
    with pytest.warns(FutureWarning, match="return_outputs"):
        _, outputs = trainer.compute_loss(trainer.model, batch, return_outputs=True)
    assert outputs.logits.shape == (*batch["input_ids"].shape, 100)


def test_a_given_model_object_is_its_own_initial_reference(tmp_path: Path):
    model = AutoModelForCausalLM.from_pretrained(start(tmp_path / "start"))
    with torch.no_grad():
        model.lm_head.weight.mul_(3)  # changed after loading
    trainer = run(ours("dpo", tmp_path, model=model, max_steps=1))
    assert logged(trainer, "rewards/chosen") == [0.0]


def test_a_model_given_by_name_trains_as_a_model_object_does(tmp_path: Path):
    folder = start(tmp_path / "start")
    how: dict[str, Any] = {"humanline": Humanline(**TIGHT), "max_steps": 3}
    named = run(ours("dpo", tmp_path / "named", model=str(folder), **how))
    handed_over = run(ours("dpo", tmp_path / "model", **how))
    assert same(weights(named), weights(handed_over))


# LoRA


@pytest.mark.parametrize(("objective", "sync_every"), [("dpo", 1), ("kto", 3)])
def test_a_lora_policy_trains_as_in_humanline_trainer_with_reference_adapter(
    objective: str, sync_every: int, tmp_path: Path
):
    settings = {"reference": "adapter", "sync_every": sync_every}
    plain = own_trainer(objective, tmp_path / "float32", torch.float32, adapted(), **settings)
    oracle = own_trainer(objective, tmp_path / "float64", torch.float64, adapted(), **settings)
    humanline = Humanline(**TIGHT, sync_every=sync_every)
    rows = in_order_of(plain.plan, objective)
    actual = ours(objective, tmp_path / "trl", rows=rows, model=adapted(), humanline=humanline)
    for trainer in (actual, plain, oracle):
        run(trainer)
    assert_same_run(actual, plain, oracle)
    assert min(logged(actual, "humanline/unclamped")) < 1


def test_with_a_peft_config_the_export_has_no_second_adapter(tmp_path: Path):
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["v_proj"])
    trainer = run(ours("dpo", tmp_path / "run", peft_config=config, max_steps=2))
    assert isinstance(trainer.reference, AdapterReference)
    assert logged(trainer, "rewards/chosen")[0] == 0.0
    assert logged(trainer, "rewards/chosen")[1] != 0.0
    trainer.save_model(str(tmp_path / "saved"))
    assert (tmp_path / "saved" / "adapter_model.safetensors").is_file()
    assert not list((tmp_path / "saved").rglob("ref*"))


def test_a_lora_policy_without_sync_keeps_its_initial_adapter_as_reference(tmp_path: Path):
    trainer = run(ours("dpo", tmp_path, model=adapted(), humanline=Humanline(sync_every=None), max_steps=2))
    kept = {n: p for n, p in trainer.model.named_parameters() if ".ref." in n}
    first = dict(adapted().named_parameters())
    assert kept
    assert all(torch.equal(p, first[name.replace(".ref.", ".default.")]) for name, p in kept.items())


# Checkpoints

SAVING: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2}


@pytest.mark.parametrize(("objective", "lora"), [("kto", False), ("dpo", True)], ids=["whole", "lora"])
def test_a_resumed_run_ends_with_the_uninterrupted_weights(objective: str, lora: bool, tmp_path: Path):
    def trainer() -> Any:
        humanline = Humanline(**TIGHT, sync_every=3)
        return ours(
            objective,
            tmp_path,
            model=adapted() if lora else None,
            humanline=humanline,
            optim="adamw_torch",
            **SAVING | {"learning_rate": 3e-3},
        )

    whole = run(trainer())
    resumed = run(trainer(), resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert same(weights(resumed), weights(whole))
    assert losses(resumed) == losses(whole)


def test_a_checkpoint_with_the_former_name_of_the_reference_is_resumed(tmp_path: Path):
    def trainer() -> Any:
        return ours("dpo", tmp_path, humanline=Humanline(sync_every=3), max_steps=4, **SAVING)

    whole = run(trainer())
    (tmp_path / "checkpoint-2" / "trl_reference.pt").rename(tmp_path / "checkpoint-2" / "reference.pt")
    resumed = run(trainer(), resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert losses(resumed) == losses(whole)


def test_a_checkpoint_without_reference_or_with_another_sync_interval_is_refused(tmp_path: Path):
    run(ours("dpo", tmp_path, max_steps=2, humanline=Humanline(sync_every=3), **SAVING))
    checkpoint = tmp_path / "checkpoint-2"

    def resume(humanline: Humanline | None) -> None:
        model = AutoModelForCausalLM.from_pretrained(start(tmp_path / "start"))
        trainer = ours("dpo", tmp_path, model=model, humanline=humanline)
        trainer.train(resume_from_checkpoint=str(checkpoint))

    with pytest.raises(ValueError, match=r"expected sync_every=3, as in .*trl_reference.pt, got sync_every=1"):
        resume(Humanline())
    with pytest.raises(ValueError, match=r"expected sync_every=3, as in .*trl_reference.pt, got humanline off"):
        resume(None)
    (checkpoint / "trl_reference.pt").unlink()
    with pytest.raises(
        ValueError, match=r"expected .*trl_reference.pt: the checkpoint was not written by this trainer"
    ):
        resume(Humanline(sync_every=3))
