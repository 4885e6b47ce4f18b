"""Every example runs with its command from examples/README.md."""

import json
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, HfArgumentParser

from benchmarks.results import ROOT
from examples.make_start import pairs
from examples.sorting_reward import reward
from humanline_fused.cli import main
from humanline_fused.demo import start_model, task
from humanline_fused.training import HumanlineConfig
from humanline_fused.training.config_file import config_arguments

FOLDER = ROOT / "examples"
MAKER = "make_start.py"
EXAMPLES = sorted(
    path.name
    for path in FOLDER.iterdir()
    if path.suffix in (".yaml", ".py") and path.name not in (MAKER, "__init__.py", "sorting_reward.py")
)
PAPER = sorted((FOLDER / "paper").glob("*.yaml"))
README = (FOLDER / "README.md").read_text()
LINES = {
    name: line
    for line, name in re.findall(r"`\.venv/bin/((?:humanline|python) [^`]*?examples/(\w+\.\w+)[^`]*)`", README)
}


SIZE = {"hidden": 64, "layers": 2, "learning_rate": 6e-3}
"""A model that is made in a third of the time of the examples' own."""


def run(line: str, *options: str) -> None:
    """Run a command of the README in this process: ``humanline train …`` or ``python examples/….py``."""
    program, *arguments = (str(ROOT / word) if word.startswith("examples/") else word for word in shlex.split(line))
    if program == "humanline":
        assert main([*arguments, *options]) == 0
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [*arguments, *options])
        runpy.run_path(arguments[0], run_name="__main__")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Current directory with the output of make_start.py, for lists of two letters and a small model."""
    folder = tmp_path_factory.mktemp("clone")
    lists = [f"sort {a}{b}: " for a in "abcd" for b in "abcd"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(task, "make_prompts", lambda count, rng, lengths: rng.choices(lists, k=count))
        patch.setattr(start_model, "make_start", partial(start_model.make_start, **SIZE))
        run(LINES[MAKER], "--steps", "40", "--prompts", "64")
        yield folder / "runs" / "examples"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Return the weights by name, with adapter weights merged into their base weights."""
    adapted = (folder / "adapter_config.json").exists()
    model = AutoModelForCausalLM.from_pretrained(folder.parent / "start" if adapted else folder)
    return (PeftModel.from_pretrained(model, folder).merge_and_unload() if adapted else model).state_dict()


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_readme_has_exactly_one_command_for_every_example() -> None:
    assert sorted(LINES) == sorted([*EXAMPLES, MAKER])


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_trains(made: Path, name: str) -> None:
    run(LINES[name], "--max_steps", "2")
    trained, start = (weights(made / folder) for folder in (Path(name).stem, "start"))
    assert trained.keys() >= start.keys()
    assert any(not torch.equal(trained[weight], start[weight]) for weight in start)


def test_make_start_writes_the_columns_of_every_objective(made: Path) -> None:
    columns = {path.stem: set(rows(path)[0]) for path in made.glob("*.jsonl")}
    assert columns == {
        "pairs": {"prompt", "chosen", "rejected"},
        "heldout_pairs": {"prompt", "chosen", "rejected"},
        "chat": {"prompt", "chosen", "rejected"},
        "unpaired": {"prompt", "completion", "label"},
        "groups": {"prompt", "completions", "rewards"},
        "prompts": {"prompt", "answer"},
    }


def test_the_labels_and_rewards_of_make_start_are_right(made: Path) -> None:
    assert all(
        task.reward(p["prompt"], p["chosen"]) > task.reward(p["prompt"], p["rejected"])
        for p in rows(made / "pairs.jsonl")
    )
    assert all(task.reward(r["prompt"], r["completion"]) == r["label"] for r in rows(made / "unpaired.jsonl"))
    for group in rows(made / "groups.jsonl"):
        asked = [group["prompt"]] * len(group["completions"])
        answers = [task.answer(group["prompt"])] * len(asked)
        assert reward(asked, group["completions"], answers) == group["rewards"]


def test_a_pair_is_the_first_right_and_the_first_wrong_answer() -> None:
    groups = [
        {"prompt": "p", "completions": ["wrong", "right", "other", "too"], "rewards": [0.0, 1.0, 0.0, 1.0]},
        {"prompt": "q", "completions": ["right", "right"], "rewards": [1.0, 1.0]},
    ]
    assert list(pairs(groups)) == [{"prompt": "p", "chosen": "right", "rejected": "wrong"}]


def test_messages_and_text_give_the_same_losses(made: Path) -> None:
    """The chat example is another format of the same data, not another run."""
    compared = ("loss", "logps/chosen", "logps/rejected", "num_tokens")
    logged = {}
    for name in ("dpo.yaml", "chat.yaml"):
        run(LINES[name], f"--output_dir={name}", "--max_steps=2", "--logging_steps=1", "--eval_strategy=no")
        logged[name] = [[line[metric] for metric in compared] for line in rows(Path(name, "metrics.jsonl"))[:2]]
    assert logged["dpo.yaml"] == logged["chat.yaml"]


@pytest.mark.parametrize("path", PAPER, ids=lambda path: path.stem)
def test_a_config_of_the_paper_is_valid_and_states_that_it_was_not_run(path: Path) -> None:
    assert path.read_text().startswith("# Not run here.")
    settings = config_arguments(path, list(HumanlineConfig.__dataclass_fields__))
    parser = HfArgumentParser(HumanlineConfig)  # pyright: ignore[reportArgumentType]
    (config,) = parser.parse_args_into_dataclasses([*settings, "--use_cpu=true", "--bf16=false"])
    assert (config.clamp, config.log_epsilon_P, config.log_epsilon_R) == (True, -1.5, 1.5)
