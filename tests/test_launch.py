"""accelerate accepts the config files and commands of docs/many_processes.md."""

import re
from pathlib import Path
from typing import Any

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_multi_gpu_env
from torch.distributed.fsdp import StateDictType

TEXT = (Path(__file__).parents[1] / "docs" / "many_processes.md").read_text(encoding="utf-8")
CONFIGS = {body.split()[1]: body for body in re.findall(r"```yaml\n(.*?)```", TEXT, flags=re.DOTALL)}
COMMANDS = re.findall(r"^accelerate launch (.*)$", TEXT, flags=re.MULTILINE)


@pytest.fixture
def configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write the documented files into the working directory."""
    for name, body in CONFIGS.items():
        (tmp_path / name).write_text(body)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("name", "kind"), [("ddp.yaml", "MULTI_GPU"), ("fsdp2.yaml", "FSDP")])
def test_the_documented_files_are_read_by_accelerate(configs: Path, name: str, kind: str):
    config: Any = load_config_from_file(str(configs / name))
    assert (config.distributed_type, config.num_processes, config.mixed_precision) == (kind, 8, "bf16")


def test_the_documented_sharding_is_fsdp2_by_layer(configs: Path, monkeypatch: pytest.MonkeyPatch):
    """As in ``accelerate launch``, keys of the file become options, and options become environment variables."""
    command = launch_command_parser().parse_args(["--config_file", "fsdp2.yaml", "train.py"])
    config: Any = load_config_from_file("fsdp2.yaml")
    assert config.fsdp_config.keys() <= vars(command).keys()
    for name, value in prepare_multi_gpu_env(_validate_launch_command(command)[0]).items():
        monkeypatch.setenv(name, value)
    plugin: Any = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert plugin.auto_wrap_policy.__name__ == "transformer_auto_wrap_policy"
    assert plugin.state_dict_type == StateDictType.SHARDED_STATE_DICT
    assert plugin.reshard_after_forward is True
    assert plugin.cpu_ram_efficient_loading


@pytest.mark.parametrize("command", COMMANDS)
def test_the_documented_commands_start_a_training_with_its_own_settings(configs: Path, command: str):
    parsed = launch_command_parser().parse_args(command.split())
    assert (parsed.module, parsed.training_script) == (True, "humanline_fused")
    assert parsed.training_script_args == ["train", "--config", "run.yaml"]
    assert parsed.config_file is None or (configs / parsed.config_file).is_file()


def test_the_page_has_commands_to_test():
    assert CONFIGS.keys() == {"ddp.yaml", "fsdp2.yaml"}
    assert len(COMMANDS) == 3
