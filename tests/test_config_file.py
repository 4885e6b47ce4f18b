"""The file of a run and the command line beside it: what a value means, and what of the file an option takes back."""

import json
from pathlib import Path

import pytest

from humanline_fused.cli import main
from tests.tiny_model import records, tiny_model, tiny_tokenizer

SETTINGS = (
    "model: start\ndataset: pairs.jsonl\nmax_steps: 1\nper_device_train_batch_size: 2\nmax_length: 32\n"
    "output_dir: run\nuse_cpu: true\ndisable_tqdm: true\neval_fraction: 0\n"
)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with a model's folder and pairs."""
    monkeypatch.chdir(tmp_path)
    tiny_model().save_pretrained("start")
    tiny_tokenizer().save_pretrained("start")
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in records("dpo", 8)))
    return tmp_path


def train(more: str, *options: str, settings: str = SETTINGS) -> int:
    """Return the status of `humanline train` with a file of the settings and ``more``."""
    Path("run.yaml").write_text(settings + more)
    return main(["train", "--config", "run.yaml", *options])


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.strip().splitlines()[-1]


def used() -> dict[str, object]:
    """Return the settings that the run used."""
    return json.loads(Path("run/settings.json").read_text())


def test_no_is_a_strategy_though_yaml_reads_false(here: Path):
    assert train("save_strategy: no\neval_strategy: off\nlogging_strategy: no\n") == 0
    assert [used()[f"{name}_strategy"] for name in ("save", "eval", "logging")] == ["no", "no", "no"]


def test_a_list_is_refused_where_a_setting_has_one_value(here: Path, capsys: pytest.CaptureFixture[str]):
    settings = SETTINGS.replace("dataset: pairs.jsonl", "dataset: [pairs.jsonl, more.jsonl]")
    assert train("", settings=settings) == 2
    assert said(capsys).endswith("run.yaml: dataset: expected one value, got a list of 2")


def test_several_places_to_report_to_are_a_list(here: Path, capsys: pytest.CaptureFixture[str]):
    assert train("report_to: [azure_ml, nowhere]\n") == 2
    assert "nowhere is not supported" in said(capsys)
    assert train("report_to: []\nsave_strategy: no\n") == 0
    assert used()["report_to"] == []


def test_null_as_an_option_leaves_the_default_in_place_of_the_files_value(here: Path):
    options = ["--reference", "frozen", "--sync-every", "null", "--objective_kwargs=null"]
    assert train("sync_every: 2\nsave_strategy: no\n", *options) == 0
    assert used()["sync_every"] is None


def test_a_synced_file_with_a_frozen_reference_names_the_option(here: Path, capsys: pytest.CaptureFixture[str]):
    assert train("sync_every: 2\n", "--reference", "frozen") == 2
    assert "sync_every: expected None with reference='frozen' (never synced; as an option, null" in said(capsys)


def test_an_implementation_that_cannot_run_here_is_one_line(here: Path, capsys: pytest.CaptureFixture[str]):
    assert train("impl: triton\nlayout: padded\nmodel_dtype: float64\n") == 2  # no kernel takes float64
    assert "impl='triton' cannot run here" in said(capsys)


@pytest.mark.parametrize(
    ("option", "library"),
    [
        ("--optim=galore_adamw", "galore_torch"),
        ("--report_to=azure_ml", "azureml"),
        ("--deepspeed=ds.json", "deepspeed"),
    ],
)
def test_a_setting_whose_library_is_not_installed_is_one_line(
    here: Path, capsys: pytest.CaptureFixture[str], option: str, library: str
):
    assert train("", option) == 2
    assert library in said(capsys)
