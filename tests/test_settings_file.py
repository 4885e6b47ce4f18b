"""A run saves its settings, so that what was trained can be read back."""

from pathlib import Path

from humanline_fused.training.run.settings_file import SETTINGS, read_settings
from tests.tiny_model import trained


def test_a_run_saves_its_settings_and_a_dry_run_does_not(tmp_path: Path) -> None:
    trained(tmp_path / "run", max_steps=1, sync_every=3, log_epsilon_R=0.75, learning_rate=3e-2)
    settings = read_settings(tmp_path / "run")
    assert (settings["sync_every"], settings["objective"], settings["log_epsilon_R"]) == (3, "dpo", 0.75)
    assert settings["learning_rate"] == 3e-2
    trained(tmp_path / "dry", dry_run=True)
    assert not (tmp_path / "dry" / SETTINGS).exists()
