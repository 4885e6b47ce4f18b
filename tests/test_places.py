"""Folders given by name: a wrong one is refused without a network, and the one that is meant is named."""

import sys
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from humanline_fused.cli import main
from humanline_fused.places import did_you_mean, nearest_path, refuse_absent
from humanline_fused.training import HumanlineConfig
from humanline_fused.training.start import loading


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current directory with a run and a model in ``first``; a hub that fails the test when it is asked."""

    def asked(*args: object, **kwargs: object) -> None:
        pytest.fail("a name of a folder was asked of the hub")

    monkeypatch.setattr("huggingface_hub.file_download.get_hf_file_metadata", asked)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    for name, file in {"run": "settings.json", "start": "config.json", "notes": "text"}.items():
        Path("first", name).mkdir(parents=True)
        Path("first", name, file).write_text("{}")
    for name in ("policy", "gpt2-policy", "gpt3", "notes"):
        Path(name).mkdir()
        Path(name, "text" if name == "notes" else "config.json").write_text("{}")
    Path("first/pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    return tmp_path


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(argv) == 2
    return capsys.readouterr().err.splitlines()[-1].split("error: ")[1]


@pytest.mark.parametrize(
    ("name", "close"),
    [
        ("first/rum", "first/run"),
        ("frist/run", "first/run"),
        ("./first/strat", "first/start"),
        ("first/Run/", "first/run"),
        ("frist", "first"),
        ("polcy", "policy"),
    ],
)
def test_a_misspelt_folder_is_refused_with_the_one_that_is_meant(name: str, close: str):
    with pytest.raises(ValueError, match="found no such folder") as refusal:
        refuse_absent(name, "a model")
    assert f"{name}: expected a model, found no such folder; did you mean {close}?" in str(refusal.value)


@pytest.mark.parametrize("name", ["first/run", "first", ".", "..", "gpt2", "note", "org/name", "start/run"])
def test_a_folder_and_what_may_be_a_models_name_are_not_refused(name: str):
    refuse_absent(name, "a model")


@pytest.mark.parametrize("name", ["", "a/b/c", "~/first", "/absent"])
def test_only_a_folder_can_have_such_a_name(name: str):
    with pytest.raises(ValueError, match="expected a model, found no such folder"):
        refuse_absent(name, "a model")


def test_a_home_is_expanded_in_settings_and_elsewhere_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    paths = ("output_dir", "model", "dataset", "eval_dataset", "resume_from_checkpoint")
    given: dict[str, Any] = dict.fromkeys(paths, "~/first")
    config = HumanlineConfig(**given, use_cpu=True, report_to="none")
    assert {name: getattr(config, name) for name in given} == dict.fromkeys(given, str(tmp_path / "first"))
    with pytest.raises(ValueError, match=rf"~/first/run: .* did you mean {tmp_path}/first/run\?"):
        refuse_absent("~/first/run", "a model")
    assert did_you_mean(Path("~/first/pairs.jsonl"), Path.is_file) == f"; did you mean {tmp_path}/first/pairs.jsonl?"


def test_a_folder_with_an_organisations_name_does_not_hide_its_models():
    refuse_absent("first/model", "a model")
    said = "first/model: no model of the hub"
    refusal = pytest.raises(ValueError, match=f"^{said}; found no such folder in first either$")
    with refusal, loading("model", "first/model"):
        raise OSError(said)


def test_offline_a_model_of_the_hub_must_be_in_the_cache(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refuse_absent("org/model", "a model")
    with pytest.raises(ValueError, match=r"found no such folder in first \(.*: hf download first/model\)"):
        refuse_absent("first/model", "a model")
    Path("cache/models--first--model").mkdir(parents=True)
    refuse_absent("first/model", "a model")


def test_a_cached_model_is_not_taken_for_a_misspelt_folder():
    with pytest.raises(ValueError, match=r"did you mean policy\? \(.*: hf download policyb\)"):
        refuse_absent("policyb", "a model")
    Path("cache/models--policyb").mkdir(parents=True)
    refuse_absent("policyb", "a model")


def test_the_nearest_path_is_found_part_by_part():
    assert nearest_path(Path("frist/stat")) == Path("first/start")
    assert nearest_path(Path("first/pair.jsonl")) is None
    assert nearest_path(Path("first/pair.jsonl"), Path.is_file) == Path("first/pairs.jsonl")
    assert nearest_path(Path("first/model")) is nearest_path(Path("second/run")) is None


def test_a_folder_says_which_of_its_folders_and_of_those_around_may_be_meant():
    assert did_you_mean(Path("first")) == "; first/run is a run; first/start is a model"
    Path("first/run/checkpoint-2").mkdir()
    assert did_you_mean(Path("first/run/checkpoint-2")) == "; first/run is a run"
    assert did_you_mean(Path("first/notes")) == ""


@pytest.mark.parametrize(
    "argv",
    [
        ["chat", "first/rum"],
        ["merge", "first/rum", "--output=new"],
        ["show", "first/rum", "--step=3"],
        ["plot", "first/rum"],
        ["diagnose", "--run=first/rum"],
        ["diagnose", "--model=first/rum", "--dataset=first/pairs.jsonl"],
        ["fit", "--model=first/rum", "--tokens=8"],
        ["data", "first/pairs.jsonl", "--model=first/rum"],
        ["train", "--model=first/rum", "--dataset=first/pairs.jsonl", "--output_dir=new", "--use_cpu=true"],
    ],
    ids=lambda argv: argv[0],
)
def test_every_command_refuses_a_misspelt_folder_in_one_line(argv: list[str], capsys):
    assert "; did you mean first/run?" in refused(capsys, *argv)


def test_chat_refuses_it_before_its_libraries_are_imported(monkeypatch: pytest.MonkeyPatch, capsys):
    for module in ("dialogue", "stored_model"):
        monkeypatch.setitem(sys.modules, f"humanline_fused.trained.{module}", None)
    assert "did you mean first/run?" in refused(capsys, "chat", "first/rum")


def test_a_folder_around_a_run_names_the_run(capsys):
    assert refused(capsys, "chat", "first").endswith("found neither; first/run is a run; first/start is a model")
    assert "; first/run is a run" in refused(capsys, "plot", "first")
    assert "; first/run is a run" in refused(capsys, "show", "first", "--step=3")


def test_a_misspelt_data_file_or_config_is_named(capsys):
    assert refused(capsys, "data", "first/pair.jsonl").endswith("found none; did you mean first/pairs.jsonl?")
    Path("first/train.yaml").write_text("")
    assert refused(capsys, "train", "--config=first/trian.yaml").endswith("did you mean first/train.yaml?")


def test_a_name_that_no_hub_knows_is_compared_with_the_folders():
    with (
        pytest.raises(ValueError, match=r"note: no model of the hub; did you mean notes\?"),
        loading("model", "note"),
    ):
        raise OSError("note: no model of the hub")
