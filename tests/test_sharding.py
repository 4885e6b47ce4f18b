"""Sharding engines: unsupported ones are refused, and an export does not change later checkpoints."""

import json
import re
import shutil
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import nn
from torch.distributed.fsdp import StateDictType
from transformers import PreTrainedModel

from humanline_fused.training.run.manifest import MANIFEST, seal
from humanline_fused.training.run.resumable import IDENTITY
from humanline_fused.training.run.sharding import engine_of, refuse_engine, whole_state_dict
from tests.tiny_model import records, tiny_trainer, trained


@pytest.mark.parametrize(
    ("reference", "instead"), [("copy", "'lookahead': the same numbers"), ("frozen", "sync_every >= max_steps")]
)
@pytest.mark.parametrize("engine", [DistributedType.FSDP, DistributedType.DEEPSPEED])
def test_a_second_model_is_refused_under_fsdp_1_and_deepspeed(engine: str, reference: str, instead: str):
    accelerator: Any = SimpleNamespace(distributed_type=engine, is_fsdp2=False)
    with pytest.raises(ValueError, match=f"expected a whole model in every process, or FSDP2.*{instead}"):
        refuse_engine(accelerator, reference)


@pytest.mark.parametrize(("engine", "fsdp2"), [("FSDP", False), ("FSDP", True), ("DEEPSPEED", False)])
def test_a_second_adapter_is_refused_where_the_policy_is_sharded(engine: str, fsdp2: bool):
    accelerator: Any = SimpleNamespace(distributed_type=DistributedType[engine], is_fsdp2=fsdp2)
    with pytest.raises(ValueError, match=r"expected a whole model in every process.*'lookahead': the same numbers"):
        refuse_engine(accelerator, "adapter")


def test_without_a_second_model_fsdp_1_is_refused_and_deepspeed_is_not():
    accelerator: Any = SimpleNamespace(distributed_type=DistributedType.FSDP, is_fsdp2=False)
    with pytest.raises(ValueError, match="fsdp_version: expected 2, got 1"):
        refuse_engine(accelerator, "lookahead")
    accelerator.distributed_type = DistributedType.DEEPSPEED
    refuse_engine(accelerator, "lookahead")


def test_a_token_budget_is_refused_under_deepspeed_alone():
    accelerator: Any = SimpleNamespace(distributed_type=DistributedType.DEEPSPEED, is_fsdp2=False)
    with pytest.raises(ValueError, match=r"max_tokens_per_micro_batch: expected None under DeepSpeed.*smaller per_dev"):
        refuse_engine(accelerator, "lookahead", cut=True)
    accelerator.distributed_type, accelerator.is_fsdp2 = DistributedType.FSDP, True
    refuse_engine(accelerator, "lookahead", cut=True)


@pytest.mark.parametrize(
    ("kind", "fsdp2", "stage", "engine"),
    [
        ("NO", False, None, "torch"),
        ("MULTI_GPU", False, None, "torch"),
        ("MULTI_CPU", False, None, "torch"),
        ("FSDP", True, None, "fsdp2"),
        ("DEEPSPEED", False, 2, "deepspeed ZeRO-2"),
        ("DEEPSPEED", False, 3, "deepspeed ZeRO-3"),
    ],
)
def test_the_engine_of_a_run_has_a_name(kind: str, fsdp2: bool, stage: int | None, engine: str):
    state = SimpleNamespace(deepspeed_plugin=SimpleNamespace(zero_stage=stage))
    accelerator: Any = SimpleNamespace(distributed_type=DistributedType[kind], is_fsdp2=fsdp2, state=state)
    assert engine_of(accelerator) == engine


def test_a_checkpoint_of_another_engine_is_refused_also_if_only_its_files_tell(tmp_path: Path):
    saving = {"save_strategy": "steps", "save_steps": 2, "num_examples": 8, "reference": "copy"}
    trained(tmp_path, max_steps=2, **saving)
    folder = tmp_path / "checkpoint-2"
    identity = json.loads((folder / IDENTITY).read_text())
    assert (identity["engine"], identity["processes"]) == ("torch", 1)
    said = "expected the engine that {} was written with, '{}', got 'torch'"
    for written, file, other in (
        ({"engine": "deepspeed ZeRO-2"}, None, "deepspeed ZeRO-2"),
        ({}, "global_step2/mp_rank_00_model_states.pt", "deepspeed"),
        ({}, "optimizer_0/__0_0.distcp", "fsdp"),
        ({}, None, None),
    ):
        if file:
            (folder / file).parent.mkdir()
            (folder / file).touch()
        kept = {name: value for name, value in identity.items() if name not in ("engine", "processes")}
        (folder / IDENTITY).write_text(json.dumps(kept | written))
        (folder / MANIFEST).unlink()
        seal(folder)
        resumed = tiny_trainer(tmp_path, max_steps=3, **saving)
        with pytest.raises(ValueError, match=re.escape(said.format(folder, other))) if other else nullcontext():
            resumed.train("auto")
        assert resumed.state.global_step == (0 if other else 3)
        if file:
            shutil.rmtree((folder / file).parent)


class Engine(nn.Module):
    """As DeepSpeed's engine: a module around the model, of which ``train`` and ``eval`` return None."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)

    def train(self, mode: bool = True) -> Any:
        super().train(mode)

    def eval(self) -> Any:
        super().eval()


@pytest.mark.parametrize(
    ("objective", "settings"),
    [("dpo", {}), ("kto", {"layout": "padded"}), ("kto", {}), ("kto", {"max_tokens_per_micro_batch": 20})],
)
def test_an_engine_whose_eval_returns_none_trains_and_evaluates_as_its_model(
    tmp_path: Path, objective: str, settings: dict[str, Any]
):
    evaluation = {"eval_dataset": records(objective, 4, 5), "eval_strategy": "steps", "eval_steps": 1}
    found = []
    for wrap in (None, Engine):
        trainer = tiny_trainer(tmp_path / str(wrap), objective=objective, max_steps=2, **evaluation, **settings)
        if wrap:
            trainer._wrap_model = lambda model, *args, **kwargs: Engine(model)
        trainer.train()
        assert isinstance(trainer.model_wrapped, wrap or PreTrainedModel)
        lines = [line.get("loss", line.get("eval_loss")) for line in trainer.state.log_history[:4]]
        found.append((lines, [p.tolist() for p in trainer.model.parameters()]))
    assert found[0] == found[1]


@pytest.mark.parametrize("kept", [StateDictType.SHARDED_STATE_DICT, StateDictType.FULL_STATE_DICT])
def test_an_export_is_whole_and_later_checkpoints_keep_their_format(kept: StateDictType):
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, state_dict_type=kept)
    accelerator: Any = SimpleNamespace(is_fsdp2=True, state=SimpleNamespace(fsdp_plugin=plugin))
    during = []

    def export() -> None:
        with whole_state_dict(accelerator):
            during.append(plugin.state_dict_type)
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="disk"):
        export()
    assert during == [StateDictType.FULL_STATE_DICT]
    assert plugin.state_dict_type == kept
