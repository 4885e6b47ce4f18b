"""Ctrl-C ends a command with one line and status 130, whatever it interrupts."""

from typing import Any

import pytest

from humanline_fused.cli import main


def test_an_interruption_ends_with_one_line_and_status_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def interrupted(argv: Any) -> None:
        """Be interrupted."""
        raise KeyboardInterrupt

    monkeypatch.setattr("humanline_fused.cli.info", interrupted)
    assert main(["info"]) == 130
    assert capsys.readouterr().err == "humanline info: interrupted\n"


@pytest.mark.parametrize("place", ["Parser.__init__", "Parser.parse_args", "unfailing_output"])
def test_ctrl_c_before_a_command_begins_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], place: str
):
    def interrupted(*args: Any, **kwargs: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"humanline_fused.cli.{place}", interrupted)
    assert main(["info"]) == 130
    assert capsys.readouterr().err == "humanline: interrupted\n"
