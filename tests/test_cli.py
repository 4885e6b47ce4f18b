"""The command line: one parser for file and options, and one-line error messages."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from humanline_fused import __version__
from humanline_fused.cli import main
from humanline_fused.training import HumanlineConfig, HumanlineTrainer
from humanline_fused.training.start import load_policy
from tests.tiny_model import tiny_model, tiny_tokenizer


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory with a model folder, ten messages-format pairs and a config that trains on them."""
    monkeypatch.chdir(tmp_path)
    tiny_model().save_pretrained("start")
    tiny_tokenizer().save_pretrained("start")
    rows = [
        {
            "prompt": [{"role": "user", "content": f"w{i} w{i + 1}"}],
            "chosen": [{"role": "assistant", "content": f"w{i} w3"}],
            "rejected": [{"role": "assistant", "content": "w5"}],
        }
        for i in range(10)
    ]
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("config.yaml").write_text(
        "model: start\ndataset: pairs.jsonl\nobjective: dpo\nlearning_rate: 1e-3\nmax_steps: 4\nlogging_steps: 1\n"
        "per_device_train_batch_size: 2\noutput_dir: run\nuse_cpu: true\ndisable_tqdm: true\nsave_steps: 2\n"
    )
    return tmp_path


def logged(run: str) -> list[dict[str, float]]:
    return [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]


def error_line(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """Return the last line on stderr of a command that must fail with status 2."""
    assert main(argv) == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_train_on_ten_pairs_of_messages_writes_a_loadable_model_and_its_metrics(here: Path) -> None:
    assert main(["train", "--config", "config.yaml"]) == 0
    trained, start = AutoModelForCausalLM.from_pretrained("run"), AutoModelForCausalLM.from_pretrained("start")
    assert any(not torch.equal(a, b) for a, b in zip(trained.parameters(), start.parameters(), strict=True))
    assert [line["step"] for line in logged("run") if "loss" in line] == [1, 2, 3, 4]


def test_an_option_on_the_command_line_overrides_the_file(here: Path) -> None:
    overrides = ["--max_steps", "2", "--output_dir", "other", "--clamp", "false"]
    assert main(["train", "--config", "config.yaml", *overrides]) == 0
    assert max(line["step"] for line in logged("other")) == 2
    assert not Path("run").exists()


def test_a_number_that_yaml_reads_as_text_is_a_number(here: Path) -> None:
    assert main(["train", "--config", "config.yaml", "--warmup_steps=0", "--max_steps=1"]) == 0
    assert logged("run")[0]["learning_rate"] == 1e-3


def test_train_continues_with_auto_to_the_weights_of_the_whole_run(here: Path) -> None:
    assert main(["train", "--config", "config.yaml"]) == 0
    whole = AutoModelForCausalLM.from_pretrained("run").state_dict()
    shutil.rmtree("run/checkpoint-4")
    assert main(["train", "--config", "config.yaml", "--resume_from_checkpoint", "auto"]) == 0
    resumed = AutoModelForCausalLM.from_pretrained("run").state_dict()
    assert all(torch.equal(resumed[name], weight) for name, weight in whole.items())
    assert [line["step"] for line in logged("run") if "loss" in line] == [1, 2, 3, 4]


def test_an_unknown_key_names_the_nearest_field(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("config.yaml").write_text("sync_evry: 4\n")
    line = error_line(capsys, "train", "--config", "config.yaml")
    assert line == (
        "humanline train: error: --config: config.yaml: 'sync_evry' is not a field; did you mean sync_every?"
    )


def test_an_unknown_option_names_the_nearest_one(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = error_line(capsys, "train", "--config", "config.yaml", "--log_epsilon_p", "-1")
    assert line == "humanline train: error: --log_epsilon_p: not an option; did you mean --log_epsilon_P?"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("- a list\n", "expected a mapping of fields to values, got list"),
        ("model: [unclosed\n", "config.yaml is not YAML"),
        (
            "model: start\nreport_to: [none, --max_steps]\n",
            "--config: config.yaml: report_to: expected items that do not begin with '-', got '--max_steps'",
        ),
        (
            "model: start\ndataset: pairs.jsonl\nmodel_dtype: int8\n",
            "model_dtype: expected float32 (fp32), bfloat16 (bf16), float16 (fp16), float64 (fp64) or auto, got 'int8'",
        ),
        ("model: start\nseed: 1\nseed: 2\n", "config.yaml, line 3: the key 'seed' occurs twice"),
        ("model: start\ncolumns:\n  prompt: a\n  prompt: b\n", "config.yaml, line 4: the key 'prompt' occurs twice"),
        ("model: start\ndataset: absent.jsonl\n", "expected a JSONL file at absent.jsonl, found none"),
        ("model: start\ndataset: pairs.jsonl\nsync_every: 0\n", "sync_every: expected an integer >= 1, got 0"),
        (
            "model: start\ndataset: pairs.jsonl\nobjective: grpo\n",
            "pairs.jsonl, line 1: this looks like preference data",
        ),
        ("dataset: pairs.jsonl\n", "model: expected a folder written by save_pretrained"),
    ],
)
def test_bad_settings_are_one_line_and_nothing_is_written(
    here: Path, capsys: pytest.CaptureFixture[str], settings: str, said: str
) -> None:
    Path("config.yaml").write_text(settings)
    assert said in error_line(capsys, "train", "--config", "config.yaml", "--output_dir", "run", "--use_cpu")
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--dataset=pair.jsonl", "expected a JSONL file at pair.jsonl, found none; did you mean pairs.jsonl?"),
        ("--eval_dataset=misspelt.jsonl", "misspelt.jsonl, line 1: lacks 'chosen'; dpo needs prompt, chosen, rejected"),
    ],
)
def test_the_data_are_looked_at_before_the_model_is_loaded(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], option: str, said: str
) -> None:
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("the model was loaded"))
    Path("misspelt.jsonl").write_text('{"prompt": "w1", "choosen": "w2", "rejected": "w3"}\n')
    assert said in error_line(capsys, "train", "--config", "config.yaml", option)
    assert not Path("run").exists()


def test_a_list_in_the_file_gives_no_other_setting(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("config.yaml").write_text(Path("config.yaml").read_text() + "report_to: [none, --max_steps, '1']\n")
    assert "report_to: expected items" in error_line(capsys, "train", "--config", "config.yaml")


@pytest.mark.parametrize("damage", [b"", b"{", b"3", None], ids=["empty", "cut off", "no object", "a part zeroed"])
@pytest.mark.parametrize(("name", "what"), [("model.safetensors", "model"), ("tokenizer.json", "tokenizer")])
def test_a_damaged_model_folder_is_one_line_that_names_it(
    here: Path, capsys: pytest.CaptureFixture[str], name: str, what: str, damage: bytes | None
) -> None:
    file = Path("start", name)
    whole = file.read_bytes()
    file.write_bytes(bytes(16) + whole[16:] if damage is None else damage)
    said = error_line(capsys, "train", "--config", "config.yaml")
    assert f"error: start: expected a {what} written by save_pretrained, which cannot be loaded (" in said
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("given", "dtype"),
    [("fp32", torch.float32), ("torch.float32", torch.float32), ("bf16", torch.bfloat16), ("auto", torch.float32)],
)
def test_a_data_type_of_weights_has_the_names_in_use(here: Path, given: str, dtype: torch.dtype) -> None:
    config = HumanlineConfig("run", model_dtype=given, use_cpu=True, report_to="none")
    assert load_policy("start", tiny_tokenizer(), config)[0].dtype == dtype


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("limit = 1 / 0", "ZeroDivisionError: division by zero ("),
        ("raise RuntimeError('no server\\nat port 80')", "RuntimeError: no server at port 80 ("),
        ("import sys; sys.exit(3)", "SystemExit: 3 ("),
        ("def score(:", "SyntaxError: invalid syntax ("),
        ("import absent_library", "No module named 'absent_library'"),
    ],
)
def test_a_reward_module_that_raises_on_import_is_one_line(
    here: Path, capsys: pytest.CaptureFixture[str], body: str, said: str
) -> None:
    name = f"reward_module_{len(body)}"
    Path(f"{name}.py").write_text(f"{body}\n")
    rounds = ["--rollout_every", "1", "--reference", "copy", "--reward", f"{name}:score"]
    assert main(["train", "--config", "config.yaml", *rounds]) == 2
    (line,) = [text for text in capsys.readouterr().err.splitlines() if "humanline train: error: " in text]
    expected = f"humanline train: error: reward: expected '{name}:score' to be a function that can be imported: {said}"
    assert line.startswith(expected)
    assert said[-1] != "(" or f"{name}.py, line 1)" in line
    assert not Path("run").exists()


@pytest.mark.parametrize("command", ["info", "diagnose", "data"])
def test_an_unknown_argument_of_two_lines_is_an_error_of_one(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([command, "file", "--two\nlines"])
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"humanline {command}: error: unrecognized arguments: ")


def test_a_file_whose_name_has_two_lines_is_named_in_one(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert error_line(capsys, "train", "--config", "a\nb").endswith("--config: a b: No such file or directory")


def test_an_error_of_several_lines_is_printed_in_one(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HumanlineConfig, "n_gpu", 4)
    line = error_line(capsys, "train", "--config", "config.yaml")
    assert line.startswith("humanline train: error: expected one process per GPU")
    assert line.endswith(
        "accelerate launch --num_processes 4 -m humanline_fused train ... or show it one with CUDA_VISIBLE_DEVICES=0"
    )
    assert error_line(capsys, "data", "two\nlines.jsonl").startswith("humanline data: error: ")


def test_the_spaces_in_a_name_are_printed_as_they_are(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert error_line(capsys, "plot", "no  run").endswith("found none at no  run/metrics.jsonl")


def test_a_missing_config_file_is_named(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = error_line(capsys, "train", "--config", "absent.yaml")
    assert line == "humanline train: error: --config: absent.yaml: No such file or directory"


@pytest.mark.parametrize("value", ["4.5", "many"])
def test_a_value_of_the_wrong_kind_in_the_file_is_refused(
    here: Path, capsys: pytest.CaptureFixture[str], value: str
) -> None:
    Path("config.yaml").write_text(f"sync_every: {value}\n")
    with pytest.raises(SystemExit) as stopped:
        main(["train", "--config", "config.yaml"])
    assert stopped.value.code == 2
    assert f"--sync_every: invalid int value: '{value}'" in capsys.readouterr().err.replace("/--sync-every", "")


def test_info_prints_the_implementation_of_each_operation_and_the_reason(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"humanline-fused  {__version__}" in lines
    for operation in ("token_log_ratio", "dpo_loss", "kto_loss", "grpo_loss"):
        assert any(
            line.startswith(operation) and "float64: the kernels accumulate in float32" in line for line in lines
        )


def test_info_says_whether_one_launchs_limit_was_measured(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    device = SimpleNamespace(name="a card", L2_cache_size=50 * 2**20, major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: device.name)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: device)
    assert main(["info"]) == 0
    line = (
        "one_launch       25.0 MiB of rows in flight, one of two partitions of L2: a model, not measured on this device"
    )
    assert line in capsys.readouterr().out.splitlines()


def test_the_module_is_the_command_and_help_imports_no_transformers() -> None:
    code = "import sys; sys.argv = ['humanline', '--version']\nimport runpy\n"
    code += "try:\n    runpy.run_module('humanline_fused', run_name='__main__')\n"
    code += "finally:\n    print('transformers' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent.parent, capture_output=True, text=True)
    assert ran.stdout.splitlines() == [f"humanline-fused {__version__}", "False"], ran.stderr


def test_an_earlier_run_in_the_same_folder_is_not_overwritten(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--config", "config.yaml"]) == 0
    line = error_line(capsys, "train", "--config", "config.yaml")
    assert "checkpoint-4 is from an earlier run: continue it with resume_from_checkpoint='auto'" in line


def test_a_dry_run_ends_before_the_first_step_and_leaves_nothing(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--config", "config.yaml", "--dry_run"]) == 0
    out = capsys.readouterr().out
    assert "head check: max |Δlogp|" in out
    assert out.splitlines()[-1] == "dry run: nothing was trained, and nothing is written to run"
    assert not Path("run").exists()


def test_the_error_of_a_failed_run_is_one_line_and_status_1(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        assert main(["train", "--config", "config.yaml"]) == 1
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("humanline train: error: run/checkpoint-2 could not be written ([Errno 28] No space left")
    assert line.endswith("There is no checkpoint to resume from")


def test_another_process_that_is_out_of_reach_is_one_line(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    step = HumanlineTrainer.get_batch_samples

    def waiting(self: HumanlineTrainer, *args: Any) -> Any:
        if self.state.global_step == 3:
            raise RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer\n[127.0.0.1]:1")
        return step(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(HumanlineTrainer, "get_batch_samples", waiting)
        assert main(["train", "--config", "config.yaml"]) == 1
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("humanline train: error: another process ended, or did not answer for ddp_timeout=1800 s (")
    assert line.endswith("Connection closed by peer [127.0.0.1]:1). Resume from run/checkpoint-2")


def test_a_checkpoint_of_another_run_is_one_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--config", "config.yaml"]) == 0
    resumed = ["--resume_from_checkpoint", "run/checkpoint-2", "--output_dir", "other", "--seed", "7"]
    line = error_line(capsys, "train", "--config", "config.yaml", *resumed)
    assert "expected the batches that run/checkpoint-2 was written with, {'seed': 42}, got {'seed': 7}" in line


def test_sigterm_saves_ends_with_status_0_and_says_how_to_continue(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    step = HumanlineTrainer.get_batch_samples

    def terminated(self: HumanlineTrainer, *args: Any) -> Any:
        if self.state.global_step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(HumanlineTrainer, "get_batch_samples", terminated)
        assert main(["train", "--config", "config.yaml", "--save_steps", "100"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "SIGTERM: stopped at step 2, saved run/checkpoint-2: --resume_from_checkpoint auto"
    assert not Path("run/model.safetensors").exists()
    assert main(["train", "--config", "config.yaml", "--resume_from_checkpoint", "auto"]) == 0
    assert [line["step"] for line in logged("run") if "loss" in line] == [1, 2, 3, 4]


def test_a_full_disk_at_the_export_is_one_line_and_status_1(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    save = HumanlineTrainer._save

    def full(self: HumanlineTrainer, output_dir: str, *args: Any, **kwargs: Any) -> None:
        if output_dir == "run":
            raise OSError(28, "No space left on device")
        save(self, output_dir, *args, **kwargs)

    monkeypatch.setattr(HumanlineTrainer, "_save", full)
    assert main(["train", "--config", "config.yaml"]) == 1
    line = capsys.readouterr().err.strip().splitlines()[-1]
    expected = (
        "run could not be written ([Errno 28] No space left on device). run/checkpoint-4 is complete: resume from it"
    )
    assert line == f"humanline train: error: {expected}"


@pytest.mark.parametrize(
    ("phase", "kept"),
    [("_plan_steps", "there is no checkpoint yet"), ("save_model", "run/checkpoint-4 is complete")],
)
def test_an_interruption_of_training_names_the_way_to_continue(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, phase: str, kept: str
) -> None:
    function = getattr(HumanlineTrainer, phase)

    def interrupted(self: HumanlineTrainer, *args: Any, **kwargs: Any) -> Any:
        if not kwargs:  # else a checkpoint is saved
            raise KeyboardInterrupt
        return function(self, *args, **kwargs)

    monkeypatch.setattr(HumanlineTrainer, phase, interrupted)
    assert main(["train", "--config", "config.yaml"]) == 130
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == f"humanline train: interrupted; {kept}: --resume_from_checkpoint auto"
