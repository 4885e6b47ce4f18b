"""`humanline train --help`: the options in groups, ours first, transformers' others on request."""

import re
from dataclasses import fields

import pytest
from transformers import TrainingArguments

from humanline_fused.cli import main
from humanline_fused.training import HumanlineConfig
from humanline_fused.training.config import OWN
from humanline_fused.training.help_text import THEIRS, USUAL, groups


def said(capsys: pytest.CaptureFixture[str], option: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main(["train", option])
    assert ended.value.code == 0
    return capsys.readouterr().out


def options_of(text: str) -> list[str]:
    return re.findall(r"^  --(?!no_|help|config)(\w+)", text, flags=re.MULTILINE)


def test_every_setting_is_in_one_group() -> None:
    named = [name for names in groups().values() for name in names]
    assert sorted(named) == sorted(field.name for field in fields(HumanlineConfig) if field.init)


def test_the_usual_options_are_transformers_own() -> None:
    assert set(USUAL) <= {field.name for field in fields(TrainingArguments)}
    assert not set(USUAL) & OWN


def test_help_has_our_options_before_the_usual_ones_of_transformers(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, "--help")
    listed = options_of(text)
    assert set(listed) == OWN | set(USUAL)
    assert listed.index("model") < listed.index("dataset") < listed.index("objective") < listed.index("output_dir")
    assert f"{THEIRS}:" not in text
    assert "--help-all" in text


def test_help_all_has_every_option_once(capsys: pytest.CaptureFixture[str]) -> None:
    listed = options_of(said(capsys, "--help-all"))
    assert sorted(listed) == sorted(field.name for field in fields(HumanlineConfig) if field.init)


def test_a_switch_that_is_on_has_its_opposite_beside_it(capsys: pytest.CaptureFixture[str]) -> None:
    lines = said(capsys, "--help").splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("  --disable_dropout"))
    assert any(line.startswith("  --no_disable_dropout") for line in lines[start : start + 5])
