"""FSDP2 over two processes trains what one process does, with the head inside the wrapped forward (gloo, on a CPU)."""

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch.distributed.tensor import DTensor

from humanline_fused.training import HumanlineTrainer
from tests.test_processes import OBJECTIVES, in_two_processes
from tests.tiny_model import losses, records, tiny_config, tiny_model, tiny_tokenizer

DESCENT: dict[str, Any] = {"optim": "sgd", "learning_rate": 0.1}
MIXED = "dpo, bfloat16"
"""One process computes under autocast what FSDP2 casts by itself: alike, and no more."""


class ShardedTrainer(HumanlineTrainer):
    """accelerate shards nothing on a CPU (it takes DDP, silently), unless its state says that it does."""

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2,
            auto_wrap_policy="transformer_based_wrap",
            transformer_cls_names_to_wrap=["LlamaDecoderLayer"],
        )
        state = self.accelerator.state
        if state.mixed_precision != "no":
            plugin.set_mixed_precision(state.mixed_precision)
        state.distributed_type, state.fsdp_plugin = DistributedType.FSDP, plugin
        self.is_fsdp_enabled = True


def train(folder: Path, world_size: int) -> None:
    """Train every objective, sharded over the processes if there are two, and keep the results."""
    kind = HumanlineTrainer if world_size == 1 else ShardedTrainer
    for run in (*OBJECTIVES, MIXED):
        objective = run.split(",")[0]
        config = tiny_config(
            folder / run,
            objective=objective,
            sync_every=2,
            max_steps=4,
            per_device_train_batch_size=4 // world_size,
            gradient_accumulation_steps=2,
            max_grad_norm=0.0,
            bf16=run == MIXED,
            **DESCENT,
        )
        trainer = kind(tiny_model(), config, records(objective, 24), processing_class=tiny_tokenizer())
        trainer.train()
        parameters = list(trainer.model.parameters())
        sharded = {isinstance(p, DTensor) for p in parameters}
        whole = [p.full_tensor() if isinstance(p, DTensor) else p for p in parameters]
        if trainer.args.process_index == 0:
            weights = torch.cat([p.detach().flatten() for p in whole])
            kept = {"losses": torch.tensor(losses(trainer)), "weights": weights, "sharded": sharded}
            torch.save(kept, folder / f"{run}.pt")
        trainer.accelerator.state._reset_state(reset_partial_state=False)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    folders = {size: tmp_path_factory.mktemp(f"fsdp{size}") for size in (1, 2)}
    train(folders[1], world_size=1)
    in_two_processes(train, folders[2])
    return folders


def both(runs: dict[int, Path], run: str) -> tuple[dict[str, Any], dict[str, Any]]:
    one, two = (torch.load(runs[size] / f"{run}.pt", weights_only=False) for size in (1, 2))
    assert (one["sharded"], two["sharded"]) == ({False}, {True})
    assert one["losses"].unique().numel() == 4
    return one, two


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_sharded_weights_give_the_losses_and_weights_of_one_process(runs: dict[int, Path], objective: str):
    one, two = both(runs, objective)
    # Ranks add up in another order than a batch does: float32 roundings of the losses, and of four steps' gradients.
    rounding = 16 * torch.finfo(torch.float32).eps
    torch.testing.assert_close(two["losses"], one["losses"], rtol=rounding, atol=rounding)
    torch.testing.assert_close(
        two["weights"], one["weights"], rtol=rounding, atol=4 * DESCENT["learning_rate"] * rounding
    )


def test_sharded_in_bfloat16_the_loss_is_not_rounded_where_it_leaves_the_model(runs: dict[int, Path]):
    _, two = both(runs, MIXED)
    # The first step compares the policy with itself: ln 2, which bfloat16 would make 0.6914.
    torch.testing.assert_close(two["losses"][0], torch.tensor(2.0).log())
