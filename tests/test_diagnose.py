"""`humanline diagnose`: the numbers are those of the models on the data, and what cannot be known is said."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from humanline_fused.cli import main
from humanline_fused.looking.diagnose import diagnose
from humanline_fused.looking.histograms import draw_histograms
from humanline_fused.looking.scored_data import ScoredData, evenly
from humanline_fused.looking.verdicts import NEEDS, diagnostics
from humanline_fused.training import HumanlineTrainer
from humanline_fused.types import HumanlineClamp
from tests.tiny_model import records, tiny_config, tiny_model, tiny_tokenizer

PRINTED = 6e-4
"""Half a unit of the third decimal, and float32's rounding."""

BOTH = ("mean ratio", "effective sample", "Pareto k", "tail mass", "clamp share")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current directory with two models of one tokenizer, and data of each form."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("start", "other")):
        model = tiny_model(seed)
        with torch.no_grad():
            model.lm_head.weight.mul_(60)  # log-probs far from uniform, so that the models differ
        model.save_pretrained(name)
        tiny_tokenizer().save_pretrained(name)
    for objective in ("dpo", "kto", "grpo"):
        Path(f"{objective}.jsonl").write_text("".join(f"{json.dumps(r)}\n" for r in records(objective, 40)))
    return tmp_path


@pytest.fixture
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same without pictures."""
    monkeypatch.setattr("humanline_fused.looking.diagnose.draw_histograms", lambda *given: None)
    return folder


def said(**given: Any) -> dict[str, str]:
    """Return the value of each diagnostic that is printed."""
    _, _, text, _ = diagnose(**given)
    lines = (line for line in text.splitlines() if not line.startswith(" "))
    return {line[:20].strip(): line[20:42].strip() for line in lines}


def scores_by_hand(model: Any, prompt: str, completion: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log-prob and entropy of each completion token, from transformers' model on one sequence."""
    tokenizer = tiny_tokenizer()
    start, ids = tokenizer(prompt)["input_ids"], tokenizer(completion)["input_ids"]
    whole = torch.tensor([[*start, *ids, tokenizer.eos_token_id]])
    with torch.no_grad():
        log_p = model(whole).logits[0, len(start) - 1 : -1].double().log_softmax(-1)
    return log_p.gather(1, whole[0, len(start) :, None])[:, 0], -(log_p.exp() * log_p).sum(-1)


def number(text: str) -> float:
    word = text.split()[0]
    return float(word.rstrip("%")) / (100 if word.endswith("%") else 1)


# Values


def test_the_values_are_those_of_the_models_on_each_completion(here: Path):
    rows = records("kto", 40)
    models = {name: AutoModelForCausalLM.from_pretrained(name) for name in ("start", "other")}
    given = {n: [scores_by_hand(model, r["prompt"], r["completion"]) for r in rows] for n, model in models.items()}
    logp, entropy = (torch.cat([one[i] for one in given["start"]]) for i in range(2))
    ratio = logp - torch.cat([one[0] for one in given["other"]])
    found = said(model="start", dataset="kto.jsonl", source="other", objective="kto")
    assert number(found["token log-prob"]) == pytest.approx(logp.mean().item(), abs=PRINTED)
    assert number(found["entropy"]) == pytest.approx(entropy.mean().item(), abs=PRINTED)
    assert number(found["surplus surprisal"]) == pytest.approx((-logp - entropy).mean().item(), abs=PRINTED)
    assert number(found["mean ratio"]) == pytest.approx(ratio.exp().mean().item(), rel=1e-3)
    outside = (ratio.abs() > 1.5).double()
    assert 0.1 < outside.mean() < 0.9
    assert number(found["clamp share"]) == pytest.approx(outside.mean().item(), abs=6e-5)
    mass = ((outside * ratio.exp()).sum() / ratio.exp().sum()).item()
    assert number(found["tail mass"]) == pytest.approx(mass, abs=6e-5)
    weights = torch.stack([a[0].sum() - b[0].sum() for a, b in zip(given["start"], given["other"], strict=True)]).exp()
    share = (weights.sum() ** 2 / weights.square().sum() / len(weights)).item()
    assert number(found["effective sample"]) == pytest.approx(share, abs=6e-5)


def test_pairs_are_two_sequences_and_the_batch_does_not_matter(here: Path):
    one, eight = (list(diagnose(model="start", dataset="dpo.jsonl", batch_size=size)) for size in (1, 8))
    assert "all 40 examples, 80 sequences" in one[1]
    assert one == eight


def test_the_bounds_are_those_that_were_asked_for(here: Path):
    given = {"model": "start", "dataset": "kto.jsonl", "source": "other"}
    wide = said(**given, log_epsilon_P=-math.inf, log_epsilon_R=math.inf)
    assert wide["clamp share"] == wide["tail mass"] == "0.00%"
    assert number(said(**given, log_epsilon_P=-0.1, log_epsilon_R=0.1)["clamp share"]) > 0.8


def test_examples_are_chosen_evenly_and_it_is_said(here: Path):
    _, first, _, _ = diagnose(model="start", dataset="kto.jsonl", limit=10)
    assert "10 (evenly chosen, --limit) of 40 examples, 10 sequences" in first
    assert evenly(100, 4) == [0, 25, 50, 75]
    assert evenly(3, 10) == [0, 1, 2]


# What is not known


def test_without_a_source_the_diagnostics_that_need_it_say_so(folder: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["diagnose", "--model", "start", "--dataset", "dpo.jsonl", "--output_dir", "out"]) == 0
    text = capsys.readouterr().out
    assert text.splitlines()[0] == "writes out/diagnose.png"
    assert text.splitlines()[1].startswith("start on dpo.jsonl (dpo): all 40 examples")
    for name in BOTH:
        assert f"\n{name:<20}{'-':<22}needs --source" in text
    assert text.splitlines()[-1] == "out/diagnose.png"
    assert Path("out/diagnose.png").read_bytes().startswith(b"\x89PNG")


def test_where_the_picture_will_be_is_said_before_the_scoring(here: Path, monkeypatch: pytest.MonkeyPatch):
    given = {"model": "start", "dataset": "dpo.jsonl"}
    monkeypatch.setattr("humanline_fused.looking.diagnose.score_data", lambda *given: pytest.fail("scored"))
    assert next(diagnose(**given)) == "writes runs/diagnose/diagnose.png"
    Path("runs/diagnose").mkdir(parents=True, exist_ok=True)
    Path("runs/diagnose/diagnose.png").touch()
    assert next(diagnose(**given)) == "writes runs/diagnose/diagnose.png, in place of the one there"


@pytest.mark.parametrize("other", ["", "source"])
def test_the_picture_has_a_panel_more_with_another_model(tmp_path: Path, other: str):
    logs = [torch.linspace(-3, -0.1, 5) * scale for scale in (1, 2)]
    data = ScoredData(logs, logs, logs[::-1] if other else None)
    draw_histograms(data, HumanlineClamp(), other, tmp_path / "picture.png")
    head = (tmp_path / "picture.png").read_bytes()[:24]
    assert head.startswith(b"\x89PNG")
    assert int.from_bytes(head[16:20], "big") == round(130 * 5.2 * (3 if other else 2))


def test_scores_without_another_model_have_no_log_ratio():
    alone = ScoredData([torch.zeros(3)], [torch.zeros(3)])
    with pytest.raises(ValueError, match="expected the data's log-probs under the model that wrote them"):
        _ = alone.log_weights
    assert [one.verdict for one in diagnostics(alone, HumanlineClamp(), "")][-5:] == [NEEDS] * 5


def test_too_few_sequences_for_a_tail_are_said(here: Path):
    lines = list(diagnose(model="start", dataset="kto.jsonl", source="other", limit=24))
    assert "needs at least 25 sequences, got 24" in lines[2]


# Verdicts


def verdicts(surplus: float, log_ratio: torch.Tensor | None = None) -> dict[str, str]:
    logp = [torch.full((4,), -1.0 - surplus) for _ in range(40)]
    other = None if log_ratio is None else [a - b for a, b in zip(logp, log_ratio.split(4), strict=True)]
    data = ScoredData(logp, [torch.ones(4) for _ in range(40)], other)
    return {one.name: one.verdict for one in diagnostics(data, HumanlineClamp(), "source" if other else "")}


def test_the_verdict_on_the_surplus_follows_its_sign():
    assert verdicts(0.05)["surplus surprisal"].startswith("as of the model's own samples")
    assert verdicts(0.5)["surplus surprisal"].startswith("the model finds the data more surprising")
    assert verdicts(-0.5)["surplus surprisal"].startswith("the data are likelier")


def test_the_verdict_on_the_tail_names_its_threshold_and_source():
    generator = torch.Generator().manual_seed(0)
    narrow, heavy = torch.randn(160, generator=generator) / 10, 3 * torch.randn(160, generator=generator)
    assert "is usable: the threshold is 0.7 (Vehtari et al. 2024)" in verdicts(0.0, narrow)["Pareto k"]
    assert "is not to be trusted" in verdicts(0.0, heavy)["Pareto k"]


# Runs


def test_a_run_is_compared_with_its_start(here: Path):
    data = {"model": "start", "dataset": "kto.jsonl", "objective": "kto"}
    saving = {"save_strategy": "steps", "save_steps": 3, "max_steps": 3, "learning_rate": 3e-2}
    HumanlineTrainer(args=tiny_config("run", **data, **saving)).train()
    _, first, text, image = diagnose(run=Path("run"), output_dir=Path("out"))
    assert first.startswith("run/checkpoint-3 on the data of run, reference: the policy at its start (kto): all 40")
    assert " ".join(text.split()).endswith("of the data's tokens are outside [-1.5, 1.5]: they get no gradient")
    assert image.strip() == "out/diagnose.png"
    named = said(model="run/checkpoint-3", reference="start", dataset="kto.jsonl", objective="kto", max_length=32)
    of_run = {line[:20].strip(): line[20:42].strip() for line in text.splitlines() if not line.startswith(" ")}
    assert named == of_run
    assert number(named["mean ratio"]) != 1


# Errors


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--model", "start"], "expected --model and --dataset, or --run"),
        (["--model", "start", "--dataset", "empty.jsonl"], "expected at least one"),
        (["--model", "start", "--dataset", "empty.jsonl", "--objective", "dpo"], "expected at least one"),
        (
            ["--model", "small", "--dataset", "dpo.jsonl"],
            "expected token ids below 50, the rows of the model's embedding",
        ),
        (
            ["--model", "start", "--source", "foreign", "--dataset", "dpo.jsonl"],
            "token '<eos>' has id 1 in start and 0 in",
        ),
        (
            ["--model", "start", "--source", "bare", "--dataset", "dpo.jsonl"],
            "are compared with those of start)",
        ),
        (
            ["--model", "start", "--source", "cut", "--dataset", "dpo.jsonl"],
            "--source: cut: expected a tokenizer",
        ),
        (["--model", "start", "--dataset", "absent.jsonl"], "expected a JSONL file at absent.jsonl, found none"),
        (["--model", "start", "--dataset", "prompts.jsonl"], "expected a completion or several, got a prompt alone"),
        (["--model", "start", "--dataset", "dpo.jsonl", "--limit", "0"], "--limit: expected an integer >= 1, got 0"),
        (["--model", "a", "--dataset", "b", "--source", "c", "--reference", "d"], "expected one of them, got both"),
        (["--run", "run", "--model", "start"], "--run: expected no --model"),
        (["--run", "run", "--source", "start"], "--run: expected neither --source nor --reference"),
        (["--run", "run"], "run"),
    ],
)
def test_bad_input_is_one_line_with_what_was_expected(
    here: Path, capsys: pytest.CaptureFixture[str], argv: list[str], said: str
):
    Path("empty.jsonl").write_text("")
    Path("prompts.jsonl").write_text('{"prompt": "w1"}\n')
    tiny_model(vocab_size=50).save_pretrained("small")
    tiny_tokenizer().save_pretrained("small")
    tiny_model().save_pretrained("bare")
    tiny_model().save_pretrained("foreign")
    tiny_tokenizer().save_pretrained("cut")
    Path("cut/tokenizer.json").write_text("{}")
    tiny_tokenizer().save_pretrained("foreign")
    file = Path("foreign/tokenizer.json")
    file.write_text(
        file.read_text()
        .replace('"<pad>": 0', '"<x>": 0')
        .replace('"<eos>": 1', '"<pad>": 1')
        .replace('"<x>": 0', '"<eos>": 0')
    )
    capsys.readouterr()
    assert main(["diagnose", *argv]) == 2
    (line,) = [one for one in capsys.readouterr().err.splitlines() if one.startswith("humanline diagnose: error:")]
    assert said in line


def test_a_run_in_rounds_has_no_data_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = tiny_config(tmp_path)
    config.rollout_every = 2
    monkeypatch.setattr(
        "humanline_fused.looking.diagnose.open_run", lambda run: type("Run", (), {"config": config, "folder": run})
    )
    with pytest.raises(ValueError, match="expected a run on a dataset, got one in rounds"):
        list(diagnose(run=tmp_path))
