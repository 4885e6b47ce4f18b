"""After training: a conversation with a run's model, and a LoRA run merged into a whole model."""

import io
import json
import shutil
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from humanline_fused.cli import main
from humanline_fused.trained.merge import merge_into
from humanline_fused.trained.stored_model import find_model
from humanline_fused.training.run.lock import locked
from humanline_fused.training.run.manifest import MANIFEST, seal
from humanline_fused.training.run.model_card import CARD, merged_card
from tests.test_model_card import front
from tests.tiny_model import records, tiny_model, tiny_tokenizer

peft = pytest.importorskip("peft")

RUN = ["--model=start", "--dataset=pairs.jsonl", "--max_steps=4", "--learning_rate=1e-2", "--use_cpu=true"]
RUN += ["--per_device_train_batch_size=2", "--save_steps=2", "--disable_tqdm=true", "--max_length=32"]
LORA = ["--lora_r=2", "--lora_target_modules", "v_proj", "down_proj"]
IDS = torch.arange(6, 26)[None]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run ``whole`` and the LoRA run ``adapted`` from the model ``start``."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        model = tiny_model()
        model.generation_config = GenerationConfig(max_new_tokens=5, eos_token_id=1, pad_token_id=0)
        model.save_pretrained("start")
        tiny_tokenizer().save_pretrained("start")
        Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in records("dpo", 8)))
        assert main(["train", *RUN, "--output_dir=whole"]) == 0
        with warnings.catch_warnings():
            warnings.filterwarnings("error", ".*is_gradient_checkpointing", FutureWarning)  # of peft, not of a user
            assert main(["train", *RUN, *LORA, "--output_dir=adapted"]) == 0
            find_model("adapted").load()
    return folder


@pytest.fixture
def here(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(trained)
    return trained


@pytest.fixture
def copied(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the runs that a test may change."""
    monkeypatch.chdir(shutil.copytree(trained, tmp_path / "copy"))
    return Path.cwd()


def said(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(argv) == 0
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """Return the one line of a command that must be refused."""
    capsys.readouterr()
    assert main(argv) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    return line.split("error: ")[1]


def greedy(folder: str, text: str, tokens: int = 4) -> str:
    """Return the most probable continuation, token by token, from the logits of the stored model."""
    model, tokenizer = find_model(folder).load().eval(), AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(text, return_tensors="pt").input_ids
    length = ids.shape[1]
    for _ in range(tokens):
        with torch.no_grad():
            following = model(input_ids=ids).logits[0, -1].argmax()
        ids = torch.cat([ids, following.reshape(1, 1)], dim=1)
        if following == tokenizer.eos_token_id:
            break
    return tokenizer.decode(ids[0, length:], skip_special_tokens=True)


# Chat


@pytest.mark.parametrize("run", ["whole", "adapted"])
def test_a_prompt_is_answered_through_the_chat_template(here: Path, run: str, capsys):
    shown = said(capsys, "chat", run, "--prompt", "w1 w2", "--temperature=0", "--max_new_tokens=4")
    assert shown.split() == greedy(run, "<user> w1 w2 <eos> <assistant>").split() != []


def test_the_second_turn_follows_the_first_and_its_answer(here: Path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("w1 w2\n\nw3\n/new\nw1 w2\n"))
    lines = said(capsys, "chat", "whole", "--system=w9", "--temperature=0", "--max_new_tokens=4").splitlines()
    begun = "<system> w9 <eos> <user> w1 w2 <eos> <assistant>"
    first = greedy("whole", begun)
    second = greedy("whole", f"{begun} {first} <eos> <user> w3 <eos> <assistant>")
    assert [line.split() for line in lines] == [first.split(), second.split(), first.split()]


def test_without_a_chat_template_a_text_is_continued_and_the_command_says_so(copied: Path, capsys):
    (copied / "whole" / "chat_template.jinja").unlink()
    capsys.readouterr()
    assert main(["chat", "whole", "--prompt=w1 w2", "--temperature=0", "--max_new_tokens=4"]) == 0
    printed = capsys.readouterr()
    assert printed.out.split() == greedy("whole", "w1 w2").split()
    assert "no chat template: every text is continued as it is" in printed.err
    assert refused(capsys, "chat", "whole", "--system=w1") == (
        "--system: expected a tokenizer with a chat template, this one has none"
    )


def test_a_checkpoint_answers_with_its_own_weights(here: Path, capsys):
    options = ("--prompt=w1 w2", "--temperature=0", "--max_new_tokens=4")
    at_2 = said(capsys, "chat", "adapted", "--checkpoint=2", *options)
    assert at_2 == said(capsys, "chat", "adapted/checkpoint-2", *options)
    loaded, export = find_model("adapted", checkpoint=2).load(), find_model("adapted").load()
    assert any(not torch.equal(a, b) for a, b in zip(loaded.parameters(), export.parameters(), strict=True))


def test_a_checkpoint_without_the_optimizer_answers_too(copied: Path, capsys):
    options = ["chat", "whole", "--checkpoint=2", "--prompt=w1 w2", "--temperature=0", "--max_new_tokens=4"]
    before = said(capsys, *options)
    saved = copied / "whole" / "checkpoint-2"
    (saved / "optimizer.pt").unlink()
    (saved / MANIFEST).unlink()
    seal(saved)  # as of a run with save_only_model
    assert said(capsys, *options) == before
    (saved / "model.safetensors").write_bytes(b"cut")
    assert refused(capsys, *options) == "whole: expected a complete checkpoint-2, it has those of steps 4"


def test_a_run_with_code_of_its_own_needs_its_readers_trust(copied: Path, capsys):
    Path("whole/mine.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n\n\n"
        "class MyConfig(LlamaConfig):\n    model_type = 'mine'\n\n\n"
        "class MyModel(LlamaForCausalLM):\n    config_class = MyConfig\n"
    )
    config = json.loads(Path("whole/config.json").read_text())
    named = {"AutoConfig": "mine.MyConfig", "AutoModelForCausalLM": "mine.MyModel"}
    Path("whole/config.json").write_text(json.dumps(config | {"model_type": "mine", "auto_map": named}))
    settings = json.loads(Path("whole/settings.json").read_text())
    Path("whole/settings.json").write_text(json.dumps(settings | {"trust_remote_code": True}))
    assert "trust_remote_code" in refused(capsys, "chat", "whole", "--prompt=w1")
    stored = find_model("whole", trust_remote_code=True)
    assert type(stored.load()).__name__ == "MyModel"
    assert stored.load_tokenizer().chat_template == tiny_tokenizer().chat_template
    assert said(capsys, "chat", "whole", "--prompt=w1", "--trust_remote_code")
    assert "trust_remote_code" in refused(capsys, "data", "pairs.jsonl", "--model=whole")
    assert said(capsys, "data", "pairs.jsonl", "--model=whole", "--trust_remote_code")


def test_samples_of_one_seed_are_alike(here: Path, capsys):
    options = ("--prompt=w1", "--temperature=2", "--max_new_tokens=9")
    first, again, other = (said(capsys, "chat", "whole", *options, f"--seed={seed}") for seed in (1, 1, 2))
    assert first == again != other


def test_a_model_that_no_run_wrote_answers_too(here: Path, capsys):
    shown = said(capsys, "chat", "start", "--prompt=w1", "--temperature=0", "--max_new_tokens=4")
    assert shown.split() == greedy("start", "<user> w1 <eos> <assistant>").split()


def test_a_run_that_has_not_ended_is_refused_with_what_to_do(copied: Path, capsys):
    for file in copied.glob("*/model.safetensors"):
        file.unlink()
    shutil.rmtree("whole/checkpoint-4")
    lines = [json.loads(line) for line in Path("whole/metrics.jsonl").read_text().splitlines()]
    ended = "whole: expected an exported model (trainer.save_model()), found none. "
    advice = "Continue it with --resume_from_checkpoint auto, or take --checkpoint 2"
    assert refused(capsys, "chat", "whole") == ended + advice
    kept = [json.dumps(line) + "\n" for line in lines if "train_runtime" not in line]
    finished = Path("whole/metrics.jsonl").read_text()
    Path("whole/metrics.jsonl").write_text("".join(kept))
    assert refused(capsys, "chat", "whole") == f"whole: expected a run that has ended, this one has not. {advice}"
    shutil.rmtree("whole/checkpoint-2")
    Path("whole/metrics.jsonl").write_text(finished)
    again = "found none. It has no checkpoint either: train again with --overwrite_output_dir true"
    assert refused(capsys, "chat", "whole").endswith(again)
    Path("whole/metrics.jsonl").write_text("".join(kept))
    assert refused(capsys, "chat", "whole").endswith("Continue it with --resume_from_checkpoint auto")


def test_a_run_that_is_being_trained_is_refused(copied: Path, capsys):
    with locked(Path("adapted")):
        assert "is in use by the run of process" in refused(capsys, "chat", "adapted")
        assert "is in use by the run of process" in refused(capsys, "merge", "adapted", "--output=merged")
    Path("adapted/.lock").write_text("left by a killed run")
    find_model("adapted")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["./absent"], "./absent: expected a folder of a run or a model, or a model name, found no such folder"),
        (
            ["."],
            ".: expected config.json of a model or adapter_config.json, found neither; "
            "adapted is a run; start is a model; whole is a run",
        ),
        (["start", "--checkpoint=2"], "--checkpoint: expected a run's folder with settings.json, found none in start"),
        (["whole", "--checkpoint=3"], "whole: expected a complete checkpoint-3, it has those of steps 2, 4"),
        (["whole", "--model=start"], "--model: expected a LoRA adapter, but whole has no adapter_config.json"),
        (["whole", "--max_new_tokens=0"], "--max_new_tokens: expected an integer >= 1, got 0"),
        (["whole", "--temperature=-1"], "--temperature: expected a finite number >= 0, got -1.0"),
    ],
)
def test_what_cannot_be_talked_with_is_one_line(here: Path, argv: list[str], message: str, capsys):
    assert refused(capsys, "chat", *argv) == message


def test_a_damaged_adapter_is_one_line(copied: Path, capsys):
    Path("adapted/adapter_model.safetensors").write_bytes(b"cut")
    line = refused(capsys, "chat", "adapted")
    assert line.startswith("adapted: expected a LoRA adapter written by save_pretrained, which cannot be loaded")


def test_the_spaces_of_a_line_are_part_of_the_text(here: Path, monkeypatch, capsys):
    asked: list[str] = []
    monkeypatch.setattr("humanline_fused.trained.dialogue.Dialogue.answer", lambda talk, text: asked.append(text))
    monkeypatch.setattr(sys, "stdin", io.StringIO(" sort ba: \n  \n"))
    said(capsys, "chat", "start")
    assert asked == [" sort ba: "]


def test_an_adapter_without_peft_names_the_extra(here: Path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "peft", None)
    assert refused(capsys, "chat", "adapted").endswith("pip install 'humanline-fused[peft]'")


# Merge


def logits(model: torch.nn.Module) -> Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def test_a_merged_model_has_the_logits_of_base_and_adapter(here: Path, tmp_path: Path):
    merge_into(stored := find_model("adapted"), tmp_path / "merged", "float64")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto")
    assert merged.dtype == torch.float64
    whole, start = logits(stored.load("float64")), logits(AutoModelForCausalLM.from_pretrained("start"))
    difference = (logits(merged) - whole).abs().max()
    assert difference <= torch.finfo(torch.float32).eps * whole.abs().max() < (whole - start).abs().max()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_merged_weight_is_rounded_as_one_sum(here: Path, tmp_path: Path, dtype: str):
    merge_into(stored := find_model("adapted"), tmp_path / "merged", dtype)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto").state_dict()
    parts = {name: tensor.double() for name, tensor in stored.load("float64").state_dict().items()}
    single, last = torch.finfo(torch.float32).eps / 2, torch.finfo(getattr(torch, dtype)).eps / 2
    changed = 0
    for name, weight in merged.items():
        path = f"base_model.model.{name}"
        if path in parts:
            assert torch.equal(weight, parts[path].to(weight.dtype))
            continue
        base, down, up = (
            parts[path.replace(".weight", f".{part}.weight")]
            for part in ("base_layer", "lora_A.default", "lora_B.default")
        )
        total, terms = base + 2 * up @ down, base.abs() + 2 * up.abs() @ down.abs()
        # Three products and sums of each of two terms, the sum with the base, and the final rounding.
        assert ((weight.double() - total).abs() <= 8 * single * terms + last * total.abs()).all()
        changed += int(not torch.equal(weight, base.to(weight.dtype)))
    assert changed == 2


def test_merge_writes_tokenizer_generation_config_and_card_beside_the_model(here: Path, tmp_path: Path, capsys):
    line = said(capsys, "merge", "adapted", f"--output={tmp_path / 'new'}").strip()
    assert line == f"wrote {tmp_path / 'new'}: start with the adapter of adapted, float32 weights"
    assert AutoTokenizer.from_pretrained(tmp_path / "new").chat_template == tiny_tokenizer().chat_template
    assert GenerationConfig.from_pretrained(tmp_path / "new").max_new_tokens == 5
    card = Path("adapted", CARD).read_text()
    assert (front(card).library_name, merged_card(f"{card}edited")) == ("peft", None)
    of_merged = (tmp_path / "new" / CARD).read_text()
    assert front(of_merged).library_name == "transformers"
    assert merged_card(of_merged) == of_merged
    options = ("--prompt=w1 w2", "--temperature=0", "--max_new_tokens=4")
    assert said(capsys, "chat", str(tmp_path / "new"), *options) == said(capsys, "chat", "adapted", *options)
    assert [file.name for file in tmp_path.iterdir()] == ["new"]


def test_a_merge_into_a_link_to_an_empty_folder_fills_the_folder(here: Path, tmp_path: Path, capsys):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder")
    said(capsys, "merge", "adapted", f"--output={tmp_path / 'link'}")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "folder" / "config.json").is_file()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["folder", "link"]


def test_a_merge_that_fails_leaves_nothing(here: Path, tmp_path: Path, monkeypatch, capsys):
    def full(*args: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("humanline_fused.trained.merge.durable.sync_tree", full)
    assert refused(capsys, "merge", "adapted", f"--output={tmp_path / 'new'}") == "no space left on device"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["whole", "--output=new"], "whole: expected a LoRA adapter to merge, whole is a whole model already"),
        (["adapted", "--output=start"], "--output: expected a new or empty folder, start has something in it"),
        (["adapted", "--output=pairs.jsonl"], "--output: expected a new or empty folder, pairs.jsonl has something in"),
        (["absent", "--output=new"], "absent: expected a run's folder, found none"),
        (["adapted", "--output=new", "--model=./no"], "--model: expected the base model of the adapter in adapted, "),
    ],
)
def test_what_cannot_be_merged_is_one_line(here: Path, argv: list[str], message: str, capsys):
    assert refused(capsys, "merge", *argv).startswith(message)
    assert not Path("new").exists()
