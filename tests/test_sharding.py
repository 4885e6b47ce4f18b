"""Sharding engines: unsupported ones are refused, and an export does not change later checkpoints."""

from types import SimpleNamespace
from typing import Any

import pytest
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch.distributed.fsdp import StateDictType

from humanline_fused.training.run.sharding import refuse_engine, whole_state_dict


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
