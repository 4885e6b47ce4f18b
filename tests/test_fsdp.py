"""FSDP2 on two processes trains as one process does, with the head inside the wrapped forward (gloo, on a CPU)."""

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM

from humanline_fused.reference import CopyReference, sync_reference_
from humanline_fused.training import HumanlineTrainer
from humanline_fused.training.run.checkpoint import faults
from tests.ranks import SaveOnce, keep, on_ranks
from tests.test_processes import OBJECTIVES, assert_equal
from tests.tiny_model import records, tiny_config, tiny_model, tiny_tokenizer

STEPS = 4
DESCENT: dict[str, Any] = {"optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 0.0}
IN_BFLOAT16 = {"bf16": True, "optim": "adamw_torch", "learning_rate": 3e-3}
CUT = "kto lookahead cut"
RUNS: dict[str, dict[str, Any]] = {
    f"{objective} {reference}": {} for objective in OBJECTIVES for reference in ("lookahead", "copy")
} | {
    "dpo frozen": {},
    CUT: {"max_tokens_per_micro_batch": 20},
    # One process uses autocast, FSDP2 its own casts: results are similar but not equal.
    "dpo lookahead bf16": IN_BFLOAT16,
    "dpo copy bf16": IN_BFLOAT16,
}
RESUMED = {"kto lookahead": "SHARDED_STATE_DICT", "dpo copy": "SHARDED_STATE_DICT", "dpo copy bf16": "FULL_STATE_DICT"}
SAVED = 3
"""Not a multiple of sync_every: the reference differs from both the saved and the initial policy."""


class ShardedTrainer(HumanlineTrainer):
    """Trainer with FSDP2 set in accelerate's state: on a CPU accelerate otherwise silently uses DDP."""

    state_dict_type = "SHARDED_STATE_DICT"

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2,
            auto_wrap_policy="transformer_based_wrap",
            transformer_cls_names_to_wrap=["LlamaDecoderLayer"],
            state_dict_type=self.state_dict_type,
            cpu_ram_efficient_loading=True,
        )
        state = self.accelerator.state
        if state.mixed_precision != "no":
            plugin.set_mixed_precision(state.mixed_precision)
        state.distributed_type, state.fsdp_plugin = DistributedType.FSDP, plugin
        PartialState().distributed_type = DistributedType.FSDP
        self.is_fsdp_enabled = True


def made(folder: Path, run: str, world_size: int) -> HumanlineTrainer:
    objective, reference = run.split()[:2]
    config = tiny_config(
        folder,
        objective=objective,
        reference=reference,
        sync_every=None if reference == "frozen" else 2,
        max_steps=STEPS,
        per_device_train_batch_size=4 // world_size,
        gradient_accumulation_steps=2,
        **DESCENT | RUNS[run],
    )
    kind = HumanlineTrainer if world_size == 1 else ShardedTrainer
    ShardedTrainer.state_dict_type = RESUMED.get(run, "SHARDED_STATE_DICT")
    callbacks = [SaveOnce(SAVED)] if world_size == 2 and run in RESUMED else None
    held_out = records(objective, 8, seed=5) if run.startswith("kto lookahead") else None
    settings = {"processing_class": tiny_tokenizer(), "callbacks": callbacks, "eval_dataset": held_out}
    # All ranks start with the first rank's weights, and dpo's head is tied to its embedding.
    model = tiny_model(seed=config.process_index, tie_word_embeddings=objective == "dpo")
    return kind(model, config, records(objective, 24), **settings)


def train(folder: Path, world_size: int) -> None:
    """Train all runs; on two ranks also save and resume some of them."""
    for run in RUNS:
        if world_size == 1 and ("copy" in run or "bf16" in run or run == CUT):
            continue
        trainer = made(folder / f"{world_size} {run}", run, world_size)
        trainer.train()
        assert trainer.layout is not None
        assert trainer.layout.layout == "shared_prompt"
        evaluation = trainer.evaluate()["eval_loss"] if trainer.eval_examples else None
        more = of_the_reference(trainer) | {"uneven": uneven(trainer)}
        keep(trainer, folder / f"{world_size} {run}.pt", evaluation=evaluation, **more)
        if world_size == 2 and run == "dpo copy":
            trainer.save_model(str(folder / "exported"))
    for run in RESUMED if world_size == 2 else ():
        trainer = made(folder / f"resumed {run}", run, world_size)
        trainer.train(str(folder / f"2 {run}" / f"checkpoint-{SAVED}"))
        keep(trainer, folder / f"resumed {run}.pt")


def uneven(trainer: HumanlineTrainer) -> list[bool]:
    """Return, for training and for evaluation, if ranks would cut a micro-batch into different numbers of parts."""
    cut, ranks = trainer.windows.budget.cut, range(trainer.args.world_size)
    windows = [[trainer.plan.window(step, rank) for rank in ranks] for step in range(STEPS)]
    pairs = [(trainer.train_examples, micros) for window in windows for micros in zip(*window, strict=True)]
    plans = trainer.held_out.plans if trainer.eval_examples else []
    held_out = [(trainer.eval_examples, [micro for micro, _ in dealt]) for dealt in zip(*plans, strict=True)]
    return [
        any(len({len(cut(examples, micro)) for micro in micros}) > 1 for examples, micros in given)
        for given in (pairs, held_out)
    ]


def of_the_reference(trainer: HumanlineTrainer) -> dict[str, Any]:
    """Return properties of the copied model and the effect of a sync on its shards."""
    if not isinstance(trainer.reference, CopyReference) or not trainer.is_fsdp_enabled:
        return {}
    reference, policy = trainer.reference.model, trainer.model
    kept = {"reference sharded": {isinstance(tensor, DTensor) for tensor in reference.state_dict().values()}}
    kept["reference trained"] = reference.training or any(p.requires_grad for p in reference.parameters())
    optimizer: Any = trainer.optimizer
    optimized = [p for group in optimizer.param_groups for p in group["params"]]
    kept["optimized"] = {id(p) for p in optimized} == {id(p) for p in policy.parameters()}

    def shards(model: torch.nn.Module) -> list[torch.Tensor]:
        return [tensor.to_local() for tensor in model.state_dict().values()]

    before = [(shard.data_ptr(), shard.clone()) for shard in shards(reference)]
    trainer.reference.score(0)
    root: Any = reference
    root.unshard()  # a forward pass leaves it so, except with torch 2.11 and accelerate 1.10
    kept["whole before a sync"] = any(not isinstance(p, DTensor) for p in reference.parameters())
    sync_reference_(reference, policy)
    kept["sharded after a sync"] = all(isinstance(p, DTensor) for p in reference.parameters())
    pairs = list(zip(before, shards(reference), shards(policy), strict=True))
    kept["differed"] = any(not torch.equal(old, theirs) for (_, old), _, theirs in pairs)
    kept["copied"] = all(torch.equal(mine, theirs) for _, mine, theirs in pairs)
    kept["in place"] = all(pointer == mine.data_ptr() for (pointer, _), mine, _ in pairs)
    try:
        sync_reference_(tiny_model(tie_word_embeddings=True), policy)
    except ValueError as refused:
        kept["refused"] = str(refused)
    return kept


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fsdp")
    on_ranks(folder, (train, 1), (train, 2))
    return folder


def load(runs: Path, run: str) -> dict[str, Any]:
    kept = torch.load(runs / f"{run}.pt", weights_only=False)
    assert kept["sharded"] == {not run.startswith("1")}
    assert kept.get("reference sharded", {True}) == {True}
    assert kept["losses"].unique().numel() == len(kept["losses"])
    return kept


@pytest.mark.parametrize("run", [*(f"{objective} lookahead" for objective in OBJECTIVES), "dpo frozen", CUT])
def test_sharded_runs_give_the_losses_and_weights_of_one_process(runs: Path, run: str):
    one, two = load(runs, f"1 {run.removesuffix(' cut')}"), load(runs, f"2 {run}")
    # Ranks sum in another order than a batch: float32 rounding of the losses, and of the gradients of four steps.
    rounding = 16 * torch.finfo(torch.float32).eps
    torch.testing.assert_close(two["losses"], one["losses"], rtol=rounding, atol=rounding)
    torch.testing.assert_close(two["evaluation"], one["evaluation"], rtol=rounding, atol=rounding)
    moved = STEPS * DESCENT["learning_rate"] * rounding
    torch.testing.assert_close(two["weights"], one["weights"], rtol=rounding, atol=moved)


def test_the_budget_cuts_the_micro_batches_of_the_ranks_into_different_numbers_of_parts(runs: Path):
    assert load(runs, f"2 {CUT}")["uneven"] == [True, True]


@pytest.mark.parametrize("run", [*OBJECTIVES, "dpo bf16"])
def test_copy_and_look_ahead_are_bitwise_equal_with_sharded_weights(runs: Path, run: str):
    objective, *precision = run.split()
    ahead, copied = (load(runs, " ".join(["2", objective, r, *precision])) for r in ("lookahead", "copy"))
    assert "reference sharded" in copied
    assert_equal(ahead, copied)


@pytest.mark.parametrize("run", ["dpo lookahead bf16", "dpo copy bf16"])
def test_a_sharded_bfloat16_model_does_not_round_the_loss_to_bfloat16(runs: Path, run: str):
    kept = load(runs, f"2 {run}")
    # The first step compares the policy with itself: ln 2, which bfloat16 would round to 0.6914.
    torch.testing.assert_close(kept["losses"][0], torch.tensor(2.0).log())
    assert kept["first"]["rewards/chosen"] == kept["first"]["rewards/rejected"] == 0


def test_the_sharded_reference_is_not_trained_and_a_sync_copies_every_shard_in_place(runs: Path):
    kept = load(runs, "2 dpo copy")
    assert kept["optimized"]
    assert not kept["reference trained"]
    assert kept["whole before a sync"]
    assert kept["sharded after a sync"]
    assert (kept["differed"], kept["copied"], kept["in place"]) == (True, True, True)


def test_a_reference_sharded_differently_from_the_policy_is_refused(runs: Path):
    refused = load(runs, "2 dpo copy")["refused"]
    assert "expected reference and policy to have the same shards" in refused
    assert "(whole in the reference, ((Shard(dim=0),), DeviceMesh" in refused


@pytest.mark.parametrize("run", RESUMED)
def test_a_resumed_sharded_run_is_bitwise_equal_to_the_uninterrupted_one(runs: Path, run: str):
    whole, resumed = load(runs, f"2 {run}"), load(runs, f"resumed {run}")
    checkpoint = runs / f"2 {run}" / f"checkpoint-{SAVED}"
    assert faults(checkpoint) == []
    assert (checkpoint / "pytorch_model_fsdp_0").is_dir() == (RESUMED[run] == "SHARDED_STATE_DICT")
    assert_equal(whole, resumed)


def test_the_exported_sharded_policy_loads_as_a_model_with_its_weights(runs: Path):
    model = AutoModelForCausalLM.from_pretrained(runs / "exported")
    weights = torch.cat([tensor.flatten() for tensor in model.state_dict().values()])
    assert torch.equal(weights, load(runs, "2 dpo copy")["weights"])
