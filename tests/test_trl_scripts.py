"""The scripts of TRL's documentation run as they are, and with the changes that our pages give, and nothing else.

What a script would download is a folder of the same name: a tiny model, a few rows in the columns of the dataset.
"""

import ast
import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
import trl
from datasets import config as datasets_config
from safetensors.torch import load_file
from transformers import LlamaForCausalLM, training_args
from trl.rewards import accuracy_rewards

from benchmarks.results import ROOT
from humanline_fused.cli import main
from tests.tiny_model import records, tiny_model, tiny_tokenizer

# Quick starts of docs/source/{dpo,kto,grpo}_trainer.md of github.com/huggingface/trl (Apache-2.0) at 35def3e (v1.9.0).
QUICK_STARTS = {
    "dpo": """\
from trl import DPOTrainer
from datasets import load_dataset

trainer = DPOTrainer(
    model="Qwen/Qwen3-0.6B",
    train_dataset=load_dataset("trl-lib/ultrafeedback_binarized", split="train"),
)
trainer.train()
""",
    "kto": """\
from datasets import load_dataset
from trl import KTOConfig, KTOTrainer
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("Qwen/Qwen2-0.5B-Instruct")
tokenizer = AutoTokenizer.from_pretrained("Qwen/Qwen2-0.5B-Instruct")
train_dataset = load_dataset("trl-lib/kto-mix-14k", split="train")

training_args = KTOConfig(output_dir="Qwen2-0.5B-KTO")
trainer = KTOTrainer(model=model, args=training_args, processing_class=tokenizer, train_dataset=train_dataset)
trainer.train()
""",
    "grpo": """\
from datasets import load_dataset
from trl import GRPOTrainer
from trl.rewards import accuracy_reward

dataset = load_dataset("trl-lib/DeepMath-103K", split="train")

trainer = GRPOTrainer(
    model="Qwen/Qwen2.5-0.5B-Instruct",
    reward_funcs=accuracy_reward,
    train_dataset=dataset,
)
trainer.train()
""",
}
OBJECTIVES = sorted(QUICK_STARTS)
TRLS = sorted({"dpo", "kto"})  # those that docs/trl.md has a trainer for
MODELS = ("Qwen/Qwen3-0.6B", "Qwen/Qwen2-0.5B-Instruct", "Qwen/Qwen2.5-0.5B-Instruct", "trl-lib/qwen1.5-1.8b-sft")


def said(role: str, text: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text.strip()}]


def start_model() -> LlamaForCausalLM:
    """Return a tiny model that ends its answers after about seven tokens."""
    model = tiny_model(max_position_embeddings=512)
    with torch.no_grad():  # a hidden direction that every token shares, and that the end of sequence looks along
        model.model.embed_tokens.weight[:, 0] = 1.0
        model.lm_head.weight[tiny_tokenizer().eos_token_id, 0] = 0.5
    return model


def rows_by_dataset(number: int = 16) -> dict[str, list[dict[str, Any]]]:
    """Return rows in the columns of each dataset that a script names."""
    pairs, labelled = records("dpo", number), records("kto", number)
    asked = [said("user", row["prompt"]) for row in pairs]
    return {
        "trl-lib/ultrafeedback_binarized": [
            {side: ask + said("assistant", row[side]) for side in ("chosen", "rejected")}
            | {"score_chosen": 8.0, "score_rejected": 2.5}
            for ask, row in zip(asked, pairs, strict=True)
        ],
        "trl-lib/kto-mix-14k": [
            {"prompt": said("user", row["prompt"]), "completion": said("assistant", row["completion"])}
            | {"label": row["label"]}
            for row in labelled
        ],
        "trl-lib/DeepMath-103K": [{"prompt": ask, "solution": "w1 w2"} for ask in asked[:1]],
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a model or a dataset at each name of the scripts."""
    here = tmp_path_factory.mktemp("here")
    for name in MODELS:
        start_model().save_pretrained(here / name)
        tiny_tokenizer().save_pretrained(here / name)
    for name, rows in rows_by_dataset().items():
        (here / name).mkdir(parents=True)
        for split in ("train", "test"):
            (here / name / f"{split}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return here


@pytest.fixture
def here(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current directory of a script: the names lead to :func:`folder`, and what it writes is its own."""
    for name in {Path(name).parts[0] for name in (*MODELS, *rows_by_dataset())}:
        (tmp_path / name).symlink_to(folder / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets_config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_TELEMETRY", True)  # of each of TRL's trainers
    monkeypatch.setattr(training_args, "is_torch_bf16_gpu_available", lambda: True)  # TRL computes in bfloat16
    # TRL's reward for mathematics asks a package that is not a dependency of TRL.
    monkeypatch.setattr(accuracy_rewards, "is_math_verify_available", lambda: True)
    answers = {"parse": lambda text, **_: [text], "verify": lambda gold, given, **_: len(given[0]) % 2}
    configs = dict.fromkeys(("LatexExtractionConfig", "NormalizationConfig"), lambda **_: None)
    for name, stand_in in (answers | configs).items():
        monkeypatch.setattr(accuracy_rewards, name, stand_in, raising=False)
    torch.manual_seed(0)
    yield tmp_path
    sys.modules.pop("my_rewards", None)


def run(script: str, *arguments: str) -> dict[str, Any]:
    """Run the text of a script with arguments, and return its names."""
    names: dict[str, Any] = {"__name__": "__main__"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["script.py", *arguments])
        exec(compile(script, "script.py", "exec"), names)
    return names


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


# Changes to a script


def differences() -> dict[str, str]:
    """Return the differences that docs/moving.md gives, by objective."""
    blocks = re.findall(r"^```diff\n(.*?)^```$", page("moving.md"), flags=re.MULTILINE | re.DOTALL)
    return {re.findall(r"(\w+)Trainer", block)[0].lower(): block for block in blocks}


def changed(script: str, difference: str) -> str:
    """Replace the lines of a difference, each of which the script has once."""
    for old, new in re.findall(r"((?:^-.*\n)+)((?:^\+.*\n)*)", difference, flags=re.MULTILINE):
        before, after = (re.sub(r"^.", "", lines, flags=re.MULTILINE) for lines in (old, new))
        assert script.count(before) == 1, before
        script = script.replace(before, after)
    return script


def with_three_lines(script: str, trainer: str) -> str:
    """Change a script of TRL's ``trainer`` as docs/trl.md does in its block of three numbered lines."""
    numbered = re.findall(r"^ *(.*?) +# [123](?:: .*)?$", page("trl.md"), flags=re.MULTILINE)
    imported, called, argument = (line.replace("DPOTrainer", trainer) for line in numbered)
    new_name = re.findall(r"(\w+)\($", called)[0]
    (call,) = (
        node
        for node in ast.walk(ast.parse(script))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == trainer
    )
    lines = script.splitlines(keepends=True)
    last, column = call.end_lineno - 1, call.end_col_offset - 1
    comma = "" if lines[last][:column].strip() in ("", ")") else ", "
    lines[last] = f"{lines[last][:column]}{comma}{argument}{lines[last][column:]}"
    return f"{imported}\n" + "".join(lines).replace(f"{trainer}(", f"{new_name}(")


# Quick starts


def check_trained(trainer: Any) -> None:
    before = start_model().state_dict()
    after = {name: weight.float() for name, weight in trainer.model.state_dict().items()}
    assert trainer.state.global_step == trainer.state.max_steps == 3 * -(-len(trainer.train_dataset) // 8)
    assert any(not torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_quick_start_of_trl_runs_as_it_is(here: Path, objective: str) -> None:
    check_trained(run(QUICK_STARTS[objective])["trainer"])


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_quick_start_runs_with_the_changes_of_our_page(here: Path, objective: str) -> None:
    trainer = run(changed(QUICK_STARTS[objective], differences()[objective]))["trainer"]
    assert (type(trainer).__name__, trainer.objective.name) == ("HumanlineTrainer", objective)
    check_trained(trainer)


@pytest.mark.parametrize("objective", TRLS)
def test_a_quick_start_runs_in_trls_trainer_with_our_three_lines(here: Path, objective: str) -> None:
    kind = f"{objective.upper()}Trainer"
    trainer = run(with_three_lines(QUICK_STARTS[objective], kind))["trainer"]
    assert type(trainer).__name__ == f"Humanline{kind}"
    assert "humanline/unclamped" in {name for line in trainer.state.log_history for name in line}
    check_trained(trainer)


def test_a_page_without_one_of_the_changed_lines_is_noticed() -> None:
    with pytest.raises(AssertionError, match="from trl import DPOTrainer"):
        changed(QUICK_STARTS["kto"], differences()["dpo"])


# The scripts of TRL's command line


def command_line_script(objective: str) -> str:
    """Return the text of the script that ``trl dpo``, ``trl kto`` or ``trl grpo`` runs, as installed."""
    return Path(trl.__file__).with_name("scripts").joinpath(f"{objective}.py").read_text(encoding="utf-8")


def commands(objective: str) -> list[list[str]]:
    """Return the options of the commands in the script's text, but those that need a GPU."""
    if objective == "grpo":  # whose script shows none
        model, dataset = "--model_name_or_path Qwen/Qwen2-0.5B-Instruct", "--dataset_name trl-lib/DeepMath-103K"
        return [shlex.split(f"{model} {dataset} --reward_funcs accuracy_reward --output_dir Qwen2-0.5B-GRPO")]
    blocks = re.findall(r"^```bash\npython \S+ \\\n(.*?)^```", command_line_script(objective), re.MULTILINE | re.DOTALL)
    assert blocks
    return [shlex.split(block.replace("\\\n", " ")) for block in blocks if "4bit" not in block]


COMMANDS = [(objective, number) for objective in OBJECTIVES for number in range(len(commands(objective)))]
SHORT = ["--max_steps", "2"]


def ours(options: list[str]) -> list[str]:
    """Return the options of `humanline train` for those of TRL's command line, by the table of docs/moving.md."""
    table = re.findall(r"^\| `(--[^`]+)` \| (?:`(--[^`]+)`|none) \|", page("moving.md"), flags=re.MULTILINE)
    line = " ".join(options).replace("=", " ") + " "
    for theirs, here in table:
        line = line.replace(f"{theirs} ", f"{here} " if here else "")
    return shlex.split(line.replace(" NAME ", f" {re.findall('--dataset (.*?) ', line)[0]} "))


def check_written(output_dir: str) -> None:
    before = start_model().state_dict()
    (weights,) = Path(output_dir).glob("*.safetensors")
    trained = load_file(weights)
    assert any(name not in before or not torch.equal(trained[name], before[name]) for name in trained)


def folder_of(options: list[str]) -> str:
    return re.findall(r"--output_dir[ =](\S+)", " ".join(options))[0]


@pytest.mark.parametrize(("objective", "number"), COMMANDS)
def test_a_script_of_trls_command_line_runs_as_it_is(here: Path, objective: str, number: int) -> None:
    options = commands(objective)[number]
    run(command_line_script(objective), *options, *SHORT)
    check_written(folder_of(options))


@pytest.mark.parametrize(("objective", "number"), COMMANDS)
def test_a_command_of_trl_is_one_of_ours_with_the_options_of_our_page(here: Path, objective: str, number: int) -> None:
    options = commands(objective)[number]
    assert main(["train", "--objective", objective, *ours(options), *SHORT]) == 0
    check_written(folder_of(options))


@pytest.mark.parametrize(("objective", "number"), [given for given in COMMANDS if given[0] in TRLS])
def test_a_script_of_trls_command_line_runs_with_our_three_lines(here: Path, objective: str, number: int) -> None:
    options = commands(objective)[number]
    run(with_three_lines(command_line_script(objective), f"{objective.upper()}Trainer"), *options, *SHORT)
    check_written(folder_of(options))
