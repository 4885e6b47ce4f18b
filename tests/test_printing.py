"""Nothing that is printed ends a command or steers a terminal, whatever the texts and the terminal's encoding."""

import io
import json
import os
import sys
import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from humanline_fused.cli import main
from humanline_fused.looking.page import Summary, page, visible
from humanline_fused.printing import escaped, plain_warnings, unfailing_output
from humanline_fused.training import HumanlineTrainer
from humanline_fused.training.data.reading import exact_json
from humanline_fused.training.run import failure_signs
from humanline_fused.training.run.failure_signs import FailureSign
from tests.html_page import Page
from tests.test_page import sequence
from tests.tiny_model import tiny_model, tiny_tokenizer

STRANGE = "\x1b[31m\x07\r\x7f\x9b1m\u202eolleh\u2066\u200f\ufeff\u2028end\ud83d"
SHOWN = "\\x1b[31m\\x07\\r\\x7f\\x9b1m\\u202eolleh\\u2066\\u200f\\ufeff\\u2028end\\ud83d"
FINE = "naïve 👩🏽\u200d🚀 ﷽ אבג 日本語\tΔ\nx"


def rows_of(prompt: str) -> str:
    return "".join(
        json.dumps({"prompt": f"w{i} {prompt}", "chosen": f" w3 {FINE}", "rejected": " w4"}) + "\n" for i in range(4)
    )


def test_a_command_prints_its_warnings_without_the_line_of_code_that_warns():
    before = warnings.formatwarning
    with plain_warnings():  # pytest records warnings, so that none is printed
        ours = warnings.formatwarning(Warning("no gain\nso far"), FailureSign, failure_signs.__file__, 1)
        theirs = warnings.formatwarning(Warning("old"), FutureWarning, "elsewhere.py", 1)
    assert (ours, theirs) == ("FailureSign: no gain so far\n", "elsewhere.py:1: FutureWarning: old\n")
    assert warnings.formatwarning is before


def test_control_characters_are_escaped_and_everything_else_is_kept():
    assert escaped(STRANGE) == SHOWN
    assert escaped(FINE) == FINE
    controls = [chr(code) for code in range(0x10000) if escaped(chr(code)) != chr(code)]
    assert len(controls) == (32 - 2) + 33 + (3 + 5 + 4) + 3 + 0x800


def test_a_report_shows_control_characters_of_the_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "a.jsonl"
    path.write_text(rows_of(STRANGE[:-1]) + json.dumps({"prompt": "\x1b[31m", "odd \u202e": 1}))
    assert main(["data", str(path)]) == 2
    seen = capsys.readouterr()
    assert SHOWN[:-6] in seen.out
    assert f"w3 {FINE}".splitlines()[0] in seen.out
    assert escaped(seen.out + seen.err) == seen.out + seen.err


def test_an_error_shows_control_characters_of_a_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["data", f"{tmp_path}/\x1b[2J\u202e.jsonl"]) == 2
    assert capsys.readouterr().err.endswith("/\\x1b[2J\\u202e.jsonl, found none\n")


SETTINGS: str = (
    "train --model start --dataset a.jsonl --objective dpo --output_dir run --max_steps 2 --logging_steps 1 "
    "--save_steps 1 --per_device_train_batch_size 2 --learning_rate 1e-3 --use_cpu true"
)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Arguments of a run in an empty current directory."""
    monkeypatch.chdir(tmp_path)
    tiny_model().save_pretrained("start")
    tiny_tokenizer().save_pretrained("start")
    Path("a.jsonl").write_text(rows_of("ask"))
    return SETTINGS.split()


def test_every_command_works_on_a_terminal_with_few_characters(settings: list[str], monkeypatch: pytest.MonkeyPatch):
    commands = [
        ["info"],
        ["data", "a.jsonl", "--model", "start"],
        settings,
        ["show", "run", "--step", "1"],
        ["plot", "run"],
        ["plot", "Δ"],
    ]
    encoded = {"stdout": "strict", "stderr": "backslashreplace"}  # as PYTHONIOENCODING=ascii has it
    with ExitStack() as stack:
        patch = stack.enter_context(monkeypatch.context())
        for name, errors in encoded.items():
            stream = stack.enter_context(Path(name).open("w", encoding="ascii", errors=errors))
            patch.setattr(sys, name, stream)
            patch.setattr(sys, f"__{name}__", stream)
        statuses = [main(command) for command in commands]
    out, err = (Path(name).read_text(encoding="ascii") for name in encoded)
    assert statuses == [0, 0, 0, 0, 0, 2], err
    assert "\\u0394" in err.splitlines()[-1]
    assert "max |\\u0394logp|" in out
    assert "unclamped  tokens/s" in out


class Pipe:
    """The writing end of a pipe whose reader has ended, in the place of stdout."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        reader, writer = os.pipe()
        os.close(reader)
        self.stream = io.TextIOWrapper(os.fdopen(writer, "wb"), "utf-8")
        for name in ("stdout", "__stdout__"):
            monkeypatch.setattr(sys, name, self.stream)


def test_a_reader_that_has_ended_ends_no_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "a.jsonl").write_text(rows_of("ask " * 100_000))
    pipe = Pipe(monkeypatch)
    assert main(["data", str(tmp_path / "a.jsonl")]) == 0
    assert sys.stdout is pipe.stream
    with unfailing_output():
        for _ in range(3):
            print("a" * 100_000, flush=True)


def test_a_process_without_output_runs(monkeypatch: pytest.MonkeyPatch):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    assert main(["info"]) == 0


# The page


def test_control_characters_are_visible_on_the_page():
    assert visible(FINE + STRANGE) == FINE.replace("\t", "⇥\t").replace("\n", "↵\n") + SHOWN
    seen = page(Summary(f"title {STRANGE}", [("run", STRANGE)], STRANGE), [sequence(["ask", STRANGE], [0.5], STRANGE)])
    assert seen.count(SHOWN) == 7  # title twice, fact, note, role, token and its tip
    assert escaped(seen) == seen
    assert [text for _, text in Page(seen).tokens] == ["ask", SHOWN]
    seen.encode()


# Whose error it is


def test_a_fault_of_the_encoding_is_not_taken_for_a_setting(settings: list[str], monkeypatch: pytest.MonkeyPatch):
    def unprintable(*_: Any, **__: Any) -> None:
        "Δ".encode("ascii")

    monkeypatch.setattr(HumanlineTrainer, "before_training", unprintable)
    with pytest.raises(UnicodeEncodeError):
        main(settings)


def test_an_error_of_another_library_is_named(
    settings: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def broken(*_: Any, **__: Any) -> None:
        json.loads("{")

    monkeypatch.setattr(HumanlineTrainer, "before_training", broken)
    assert main(settings) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("humanline train: error: Expecting property name enclosed in double quotes: ")
    assert "(JSONDecodeError in json.decoder, line " in line


def test_an_error_of_this_package_is_the_message_alone(
    settings: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(HumanlineTrainer, "before_training", lambda *_: exact_json.parse('{"a": 1, "a": 2}'))
    assert main(settings) == 2
    assert capsys.readouterr().err.splitlines()[-1] == ("humanline train: error: the key 'a' occurs twice in an object")
