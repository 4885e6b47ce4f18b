"""Every snippet of the documentation runs, and every command is one that its program accepts.

A fenced block that cannot run here has a line ``<!-- not run: REASON -->`` above it.
"""

import argparse
import json
import re
import runpy
import shlex
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from datasets import Dataset

from benchmarks.__main__ import VERBS
from benchmarks.results import ROOT
from humanline_fused import cli
from humanline_fused.training import HumanlineConfig, HumanlineTrainer
from tests.tiny_model import records, tiny_model, tiny_tokenizer

PAGES = sorted(
    [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "SECURITY.md",
        *(ROOT / "docs").glob("*.md"),
        *ROOT.glob("*/README.md"),
    ]
)
FENCE = re.compile(r"(?:^<!-- not run: (\S.*) -->\n)?^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"(?<!`)`(?:\.venv/bin/)?((?:humanline|python|make|accelerate|pip|pytest) [^`]+)`(?!`)")
PLACEHOLDERS = {"N": "1", "NAME": "equal"}
STAND_INS = {"Qwen/Qwen3-0.6B": "start", 'DPOConfig("run")': 'DPOConfig("run", use_cpu=True, bf16=False)'}
"""For a model that would be downloaded, and a GPU."""


@dataclass(frozen=True)
class Fence:
    """A fenced block: its page, language and text, and why it is not run, if it is not."""

    page: str
    number: int
    language: str
    text: str
    reason: str | None

    def __str__(self) -> str:
        return f"{self.page}:{self.number}"


def fences_of(page: Path) -> list[Fence]:
    text = page.read_text(encoding="utf-8")
    found = (match.group(2, 3, 1) for match in FENCE.finditer(text))
    return [Fence(page.relative_to(ROOT).as_posix(), n, *parts) for n, parts in enumerate(found, 1)]


FENCES = [fence for page in PAGES for fence in fences_of(page)]
RUN = [fence for fence in FENCES if not fence.reason]


class Accepted(BaseException):
    """Raised in place of the work, once a command has read its arguments."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the files that the commands of the pages name."""
    here = tmp_path_factory.mktemp("here")
    tiny_model().save_pretrained(here / "start")
    tiny_tokenizer().save_pretrained(here / "start")
    (here / "pairs.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in records("dpo", 4)))
    (here / "first").mkdir()  # as `humanline init` makes it, which tests/test_first_run.py runs
    for settings in ("run.yaml", "first/train.yaml"):
        (here / settings).write_text("model: start\ndataset: pairs.jsonl\nobjective: grpo\noutput_dir: new\n")
    (here / "my_losses.py").write_text(next(f.text for f in FENCES if f.page == "docs/losses.md" and "APOZ" in f.text))
    (here / "examples").symlink_to(ROOT / "examples")
    return here


@pytest.fixture
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current directory, where no command does more than to read its arguments."""
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(HumanlineTrainer, "__init__", accepted)
    parse_args = argparse.ArgumentParser.parse_args

    def parse(parser: argparse.ArgumentParser, *arguments: Any, **named: Any) -> argparse.Namespace:
        options = parse_args(parser, *arguments, **named)
        if parser.prog != "humanline":  # which reads the name of a command
            raise Accepted
        return options

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse)
    yield folder
    sys.modules.pop("my_losses", None)


def accepted(*_: Any, **__: Any) -> None:
    raise Accepted


# Programs


def humanline(arguments: list[str]) -> None:
    if len(arguments) == 1:  # a command's name in a sentence
        assert callable(getattr(cli, arguments[0]))
        return
    with pytest.raises(Accepted):
        cli.main(arguments)


def python(arguments: list[str]) -> None:
    if arguments[0] != "-m":  # tests/test_examples.py runs it
        assert (ROOT / arguments[0]).is_file()
    elif arguments[1:] == ["benchmarks", "report"]:  # has no arguments to read
        assert "report" in VERBS
    elif arguments[1] in ("benchmarks", "tests.faults"):
        with pytest.raises(Accepted):
            run_module(arguments[1:])
    else:
        assert arguments[1] in ("pytest", "http.server"), arguments
        pytest_command(arguments[2:])


def run_module(arguments: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", arguments)
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)


def pytest_command(arguments: list[str]) -> None:
    named = [word for word in arguments if word.startswith("tests/")]
    assert [name for name in named if not (ROOT / name).is_file()] == []


def make(arguments: list[str]) -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert [word for word in arguments if "=" not in word and word not in targets] == []


def accelerate(arguments: list[str]) -> None:
    assert arguments[0] == "launch"
    if len(arguments) > 1 and "-m" in arguments:
        parser = launch_command_parser()
        options, _ = parser.parse_known_args(arguments[1:])
        assert options.training_script == "humanline_fused"
        humanline(options.training_script_args)


def pip(arguments: list[str]) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    wanted = re.findall(r"(?:humanline-fused|\.)\[([\w,]+)\]", " ".join(arguments))
    assert {extra for names in wanted for extra in names.split(",")} <= extras.keys()


PROGRAMS: dict[str, Callable[[list[str]], None]] = {
    "humanline": humanline,
    "python": python,
    "pytest": pytest_command,
    "make": make,
    "accelerate": accelerate,
    "pip": pip,
}


def check(line: str) -> None:
    """Let the program of a line read its arguments."""
    words = shlex.split(line, comments=True)
    while words and re.match(r"[A-Z_]+=", words[0]):
        words.pop(0)
    if words:
        program = words[0].removeprefix(".venv/bin/")
        assert program in PROGRAMS, f"{line}: a program that this test does not know; mark the block if it cannot run"
        PROGRAMS[program]([PLACEHOLDERS.get(word, word) for word in words[1:] if word != "…"])


# Tests


@pytest.mark.parametrize("page", sorted({f.page for f in RUN if f.language == "python"}))
def test_the_python_blocks_of_a_page_run_in_order(
    page: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "start").symlink_to(folder / "start")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names: dict[str, Any] = {"pairs": Dataset.from_list(records("dpo", 4))}
    for fence in RUN:
        if (fence.page, fence.language) == (page, "python"):
            text = fence.text
            for stated, here in STAND_INS.items():
                text = text.replace(stated, here)
            exec(text, names)


@pytest.mark.parametrize("fence", [f for f in RUN if f.language in ("sh", "bash")], ids=str)
def test_the_commands_of_a_block_are_accepted(fence: Fence, here: Path) -> None:
    for line in fence.text.replace("\\\n", " ").splitlines():
        check(line)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_commands_in_the_sentences_of_a_page_are_accepted(page: Path, here: Path) -> None:
    for line in INLINE.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        check(line)


@pytest.mark.parametrize("fence", [f for f in RUN if f.language in ("yaml", "json")], ids=str)
def test_the_settings_of_a_block_exist(fence: Fence, tmp_path: Path) -> None:
    settings = yaml.safe_load(fence.text) if fence.language == "yaml" else json.loads(fence.text)
    if "distributed_type" in settings:
        (tmp_path / "config.yaml").write_text(fence.text)
        assert vars(load_config_from_file(str(tmp_path / "config.yaml")))["num_processes"] == settings["num_processes"]
    elif fence.language == "yaml":
        assert settings.keys() <= HumanlineConfig.__dataclass_fields__.keys()


def test_every_block_has_a_language_that_is_tried_or_a_reason() -> None:
    tried = ("python", "sh", "bash", "yaml", "json", "diff")  # diff: tests/test_trl_scripts.py
    assert [str(f) for f in RUN if f.language not in tried] == []


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("humanline train --sync_evry 2", "not an option"),
        ("humanline plot --output x.png", "required: RUN"),
        ("python -m benchmarks paper absent", "invalid choice"),
        ("make absent", "absent"),
        ("pip install 'humanline-fused[absent]'", "absent"),
        ("absent --help", "does not know"),
    ],
)
def test_a_command_that_does_not_exist_is_noticed(
    line: str, reason: str, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises((pytest.fail.Exception, AssertionError, SystemExit)) as error:
        check(line)
    assert reason in f"{error.value} {capfd.readouterr().err}"
