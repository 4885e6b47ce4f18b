"""The numbers that `humanline show` shows are those of the loss."""

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from humanline_fused.cli import main
from humanline_fused.looking.show import show_run
from humanline_fused.training import HumanlineTrainer
from humanline_fused.training.data.plan import BatchPlan, BatchSizes
from humanline_fused.training.run.manifest import MANIFEST, seal
from humanline_fused.training.run.settings_file import SETTINGS
from tests.html_page import Page
from tests.shown_runs import Run, runs_in
from tests.tiny_model import records, tiny_config, tiny_model, tiny_tokenizer

PRINTED = 1e-4
"""Rounding to four decimals errs by half a unit in the last place; float32's error is far below the other half."""


@pytest.fixture(scope="module")
def run_of(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return runs_in(tmp_path_factory.mktemp("show"))


def shown(run: Path, **what: Any) -> Page:
    return Page(show_run(run, output=run.parent / "page.html", **what).read_text(encoding="utf-8"))


def logged(run: Path, step: int) -> dict[str, Any]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return next(line for line in lines if line["step"] == step and "loss" in line)


@torch.no_grad()
def logps_by_hand(model: Path, ids: Sequence[int]) -> torch.Tensor:
    """Return the log-prob of every token but the first, from transformers' model on the single sequence."""
    logits = AutoModelForCausalLM.from_pretrained(model)(torch.tensor([ids])).logits[0, :-1]
    return logits.log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]


def unclamped_in(seen: Page) -> float:
    return 1 - seen.clamped / len(seen.scored)


def approximately(share: float, seen: Page) -> Any:
    """Match the share of exactly one number of tokens."""
    return pytest.approx(share, abs=0.5 / len(seen.scored))


# Numbers


@pytest.mark.parametrize(
    ("objective", "settings"),
    [
        ("dpo", {"sync_every": 3}),
        ("kto", {"sync_every": 3, "gradient_accumulation_steps": 2}),
        ("grpo", {"reference": "copy", "sync_every": 2}),
        ("dpo", {"reference": "frozen"}),
        ("dpo", {"reference": "frozen", "clamp": False}),
    ],
)
def test_the_unclamped_share_is_what_the_step_logged(run_of: Run, objective: str, settings: dict[str, Any]) -> None:
    run = run_of(objective, **settings)
    for step in (1, 3, 4):
        seen = shown(run, step=step)
        assert unclamped_in(seen) == approximately(logged(run, step + 1)["humanline/unclamped"], seen)


def test_the_compared_runs_have_clamped_tokens(run_of: Run) -> None:
    run = run_of(sync_every=3)
    assert any(logged(run, step + 1)["humanline/unclamped"] < 1 for step in (1, 3, 4))


def test_rewards_of_chosen_and_rejected_are_what_the_step_logged(run_of: Run) -> None:
    run = run_of(sync_every=3)
    rewards = [float(value) for value in re.findall(r"reward β·R ([-+.\d]+)", shown(run, step=3).text)]
    mean = {"chosen": sum(rewards[::2]) / 2, "rejected": sum(rewards[1::2]) / 2}
    for role, value in mean.items():
        assert value == pytest.approx(logged(run, 4)[f"rewards/{role}"], abs=PRINTED)


@pytest.mark.parametrize(
    ("settings", "step", "reference"),
    [
        ({"sync_every": 3}, 3, "start"),
        ({"sync_every": 3}, 4, "checkpoint-3"),
        ({"reference": "copy", "sync_every": 2}, 4, "checkpoint-2"),
        ({"reference": "frozen"}, 4, "start"),
    ],
)
def test_log_probs_belong_to_the_weights_of_policy_and_reference(
    run_of: Run, settings: dict[str, Any], step: int, reference: str
) -> None:
    run = run_of(**settings)
    seen = shown(run, step=step)
    scored = iter(seen.scored)
    compared = 0
    for sequence in sequences_in(seen):
        ids = [int(re.search(r"id (\d+)", attributes["data-tip"])[1]) for attributes in sequence]
        count = sum("tabindex" in attributes for attributes in sequence)
        policy = logps_by_hand(run / f"checkpoint-{step}", ids)[-count:]
        other = run.parent / "start" if reference == "start" else run / reference
        expected = zip(policy.tolist(), logps_by_hand(other, ids)[-count:].tolist(), strict=True)
        for logp, ref_logp in expected:
            token = next(scored)
            assert token["logp"] == pytest.approx(logp, abs=PRINTED)
            assert token["ref_logp"] == pytest.approx(ref_logp, abs=PRINTED)
            assert token["log_ratio"] == pytest.approx(logp - ref_logp, abs=PRINTED)
            compared += 1
    assert compared == len(seen.scored)


def sequences_in(seen: Page) -> list[list[dict[str, str]]]:
    """Return the tokens' attributes by sequence; a sequence begins with its prompt."""
    sequences: list[list[dict[str, str]]] = []
    in_prompt = False
    for attributes, _ in seen.tokens:
        begins = "prompt" in attributes["class"].split()
        if begins and not in_prompt:
            sequences.append([])
        in_prompt = begins
        sequences[-1].append(attributes)
    return sequences


@pytest.mark.parametrize(("step", "since"), [(3, 0), (4, 3)])
def test_the_page_states_the_step_of_the_reference(run_of: Run, step: int, since: int) -> None:
    said = f"look-ahead: the policy as it was before step {since}, which scored step {step}'s tokens then"
    assert said in shown(run_of(sync_every=3), step=step).text


def test_an_adapter_and_its_reference_are_read_back(run_of: Run, tmp_path: Path) -> None:
    import peft

    base = run_of(sync_every=3).parent
    model = AutoModelForCausalLM.from_pretrained(base / "start")
    lora = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], r=4)
    settings = {"dataset": str(base / "dpo.jsonl"), "save_strategy": "steps", "save_steps": 3, "max_steps": 4}
    settings |= {"reference": "adapter", "sync_every": 2, "log_epsilon_R": 0.02, "log_epsilon_P": -0.02}
    args = tiny_config(tmp_path / "run", learning_rate=0.1, **settings)
    HumanlineTrainer(peft.get_peft_model(model, lora), args).train()
    seen = shown(tmp_path / "run", step=3)
    unclamped = logged(tmp_path / "run", 4)["humanline/unclamped"]
    assert unclamped < 1
    assert unclamped_in(seen) == approximately(unclamped, seen)


# One example


def test_an_example_with_pending_scores_is_compared_with_them(run_of: Run) -> None:
    run = run_of(sync_every=3)
    state = torch.load(run / "checkpoint-4" / "run_state.pt", weights_only=True)
    waiting = next(iter(state["pending"][4]))
    seen = shown(run, example=waiting, checkpoint=4)
    assert "before step 3, which scored step 4's tokens then" in seen.text
    assert "not with what a loss" not in seen.text
    scored = state["pending"][4][waiting]["ref_logp"]
    expected = [value for logp in scored for value in logp.tolist()]
    assert [token["ref_logp"] for token in seen.scored] == pytest.approx(expected, abs=PRINTED)


def test_an_example_without_scores_is_compared_with_the_initial_policy_and_says_so(run_of: Run) -> None:
    run = run_of(sync_every=3)
    state = torch.load(run / "checkpoint-5" / "run_state.pt", weights_only=True)
    assert state["pending"] == {}
    seen = shown(run, example=7)
    start = run.parent / "start"
    assert f"Compared with the policy at the start of the run ({start}), not with what a loss" in seen.text
    ids = [int(re.search(r"id (\d+)", attributes["data-tip"])[1]) for attributes in sequences_in(seen)[0]]
    count = sum("tabindex" in attributes for attributes in sequences_in(seen)[0])
    by_hand = logps_by_hand(run.parent / "start", ids)[-count:].tolist()
    assert [token["ref_logp"] for token in seen.scored[:count]] == pytest.approx(by_hand, abs=PRINTED)


def test_every_token_of_a_step_is_on_the_page_once(run_of: Run) -> None:
    run = run_of(sync_every=3)
    seen = shown(run, step=3)
    assert seen.open == []
    rows = records("dpo", 20)
    examples = [int(text.removeprefix("Example ")) for text in seen.texts if text.startswith("Example ")]
    assert len(examples) == 2
    texts = [f"{rows[i]['prompt']}{rows[i][side]} <eos>" for i in examples for side in ("chosen", "rejected")]
    assert "".join(text for _, text in seen.tokens) == "".join(texts)


def test_the_samples_of_a_round_are_shown_as_the_step_used_them(run_of: Run) -> None:
    run = run_of("grpo", reference="copy", rollout_every=2, num_generations=2, max_completion_length=4)
    seen = shown(run, step=3)
    assert unclamped_in(seen) == approximately(logged(run, 4)["humanline/unclamped"], seen)
    samples = [json.loads(line) for line in (run / "completions.jsonl").read_text().splitlines()]
    of_round = [sample["completion_ids"] for sample in samples if sample["step"] == 2]
    of_step = of_round[2:]  # the second of the round's two steps takes the second half
    assert sorted(int(token["id"]) for token in seen.scored) == sorted(id for ids in of_step for id in ids)


def test_without_a_step_a_run_in_rounds_shows_the_newest_with_samples(run_of: Run, tmp_path: Path) -> None:
    settings = {"rollout_every": 2, "num_generations": 2, "max_completion_length": 4}
    run = Path(shutil.copytree(run_of("grpo", reference="copy", **settings), tmp_path / "run"))
    assert show_run(run).name == "show-step-5.html"
    lines = (run / "completions.jsonl").read_text().splitlines(keepends=True)
    (run / "completions.jsonl").write_text("".join(line for line in lines if json.loads(line)["step"] < 4))
    assert show_run(run).name == "show-step-3.html"  # as of a run that ended after step 4 or 5


def test_a_step_of_a_run_from_before_groups_stood_together_is_shown_as_it_was(run_of: Run, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(run_of("grpo", reference="copy", sync_every=2), run)
    together = shown(run, step=3)
    identity = json.loads((run / "checkpoint-3" / "run.json").read_text())
    del identity["batches"]["groups"]
    (run / "checkpoint-3" / "run.json").write_text(json.dumps(identity))
    seal(run / "checkpoint-3")
    examples = [[text for text in page.texts if text.startswith("Example ")] for page in (together, shown(run, step=3))]
    alone = BatchPlan(identity["batches"]["num_examples"], BatchSizes(2), identity["batches"]["seed"]).examples(3)
    assert examples[1] == [f"Example {i}" for i in alone] != examples[0]


# Refused requests


def error_of(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    capsys.readouterr()
    assert main(["show", *argv]) == 2
    return capsys.readouterr().err.strip().splitlines()[-1].removeprefix("humanline show: error: ")


def test_the_command_prints_the_path_of_the_page(run_of: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_of(sync_every=3)
    assert main(["show", str(run), "--step", "3"]) == 0
    assert capsys.readouterr().out.splitlines() == [str(run / "show-step-3.html")]
    assert (run / "show-step-3.html").read_text().startswith("<!DOCTYPE html>")


def test_without_a_step_it_is_the_newest_checkpoint_whose_run_has_ended(run_of: Run, capsys) -> None:
    run = run_of(sync_every=3)
    assert main(["show", str(run)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(run / "show-step-5.html")
    text = Page((run / "show-step-5.html").read_text()).text
    assert "the 2 examples that would have followed: the run ended after 5 steps, and has no loss of these" in text
    assert "checkpoint-5: the weights after 5 updates, the last" in text
    assert "log line" not in text
    assert "(from 0; its loss is in the log line of step 4)" in shown(run, step=3).text
    assert error_of(capsys, str(run), "--checkpoint=3").endswith(
        "expected --example I beside it, or --step 3 in its place"
    )


def test_a_step_without_a_checkpoint_lists_those_that_have_one(run_of: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_of(sync_every=3)
    said = error_of(capsys, str(run), "--step", "0")
    assert said == f"{run}: expected a complete checkpoint-0, it has those of steps 1, 2, 3, 4, 5"


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--example", "20"], "--example: expected 0 to 19, got 20"),
        (["--output", "absent/page.html"], "absent/page.html: expected a file in a folder that exists, found no"),
        (["--step", "3", "--checkpoint", "2"], "--checkpoint: expected none with --step N"),
        (["--step", "3", "--dataset", "absent.jsonl"], "dataset: expected a JSONL file at absent.jsonl, found none"),
    ],
)
def test_a_missing_input_gives_one_line(
    run_of: Run, capsys: pytest.CaptureFixture[str], argv: list[str], said: str
) -> None:
    assert error_of(capsys, str(run_of(sync_every=3)), *argv).startswith(said)


def test_a_folder_without_a_run_gives_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = error_of(capsys, str(tmp_path), "--step", "3")
    assert said == f"expected a run's folder with a {SETTINGS}, found none at {tmp_path / SETTINGS}"


FILES = ("settings.json", "run.json", "trainer_state.json", "config.json", "tokenizer_config.json", "tokenizer.json")


@pytest.mark.parametrize("name", FILES)
def test_files_of_another_program_give_a_page_or_one_line(
    run_of: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """The files are listed, so that they are not damaged: another program, or version, wrote them."""
    run = tmp_path / "run"
    shutil.copytree(run_of(sync_every=3), run)
    file = run / name if name == SETTINGS else run / "checkpoint-3" / name
    whole = json.loads(file.read_text())
    changed = [None, "{", "[1]", "{}", json.dumps(dict.fromkeys(whole)), json.dumps(dict.fromkeys(whole, "?"))]
    for parts in ("batches", "model"):
        if isinstance(whole.get(parts), dict):
            changed += [json.dumps(whole | {parts: dict.fromkeys(whole[parts])}), json.dumps(whole | {parts: 3})]
    statuses = []
    for text in changed:
        if text is None:
            file.unlink()
        else:
            file.write_text(text)
        (run / "checkpoint-3" / MANIFEST).unlink()
        seal(run / "checkpoint-3")
        statuses.append(main(["show", str(run), "--step", "3"]))
        errors = [line for line in capsys.readouterr().err.splitlines() if "humanline show: error: " in line]
        assert len(errors) == statuses[-1] / 2
    assert set(statuses) <= {0, 2}
    assert 2 in statuses or name == "tokenizer_config.json"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("run_state.pt", "what a run of this trainer writes, got something else ("),
        ("model.safetensors", "a model written by save_pretrained, which cannot be loaded ("),
    ],
)
def test_a_file_of_the_checkpoint_that_cannot_be_read_is_named(
    run_of: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, expected: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(run_of(sync_every=3), run)
    checkpoint = run / "checkpoint-3"
    whole = (checkpoint / name).read_bytes()
    (checkpoint / name).write_bytes(whole[:-100] + bytes(100))
    said = error_of(capsys, str(run), "--step", "3")
    assert said.startswith(f"{checkpoint}: {name} is damaged, or another checkpoint's")
    for content in (whole[: len(whole) // 2], b"", b"text"):
        (checkpoint / name).write_bytes(content)
        (checkpoint / MANIFEST).unlink()
        seal(checkpoint)
        said = error_of(capsys, str(run), "--step", "3")
        assert said.startswith(f"{checkpoint}: expected {expected}")


def test_samples_of_another_program_give_one_line(
    run_of: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    settings = {"rollout_every": 2, "num_generations": 2, "max_completion_length": 4}
    shutil.copytree(run_of("grpo", reference="copy", **settings), run)
    (run / "completions.jsonl").write_text('{"step": 2, "text": "w1"}\n')
    assert error_of(capsys, str(run), "--step", "3").startswith(f"{run}: expected what a run of this trainer writes")


def test_data_changed_since_the_run_are_refused(
    run_of: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of(sync_every=3)
    rows = records("dpo", 20)
    rows[4]["chosen"] += " w7"
    changed = tmp_path / "changed.jsonl"
    changed.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    said = error_of(capsys, str(run), "--step", "3", "--dataset", str(changed))
    assert said.startswith(f"{changed}: expected the data that {run} was trained on (20 examples, fingerprint ")


def test_a_run_with_in_memory_inputs_is_shown_with_named_data_and_model(
    run_of: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, run = run_of(sync_every=3).parent, tmp_path / "run"
    args = tiny_config(run, max_steps=2, save_strategy="steps", save_steps=2)
    HumanlineTrainer(tiny_model(), args, records("dpo", 20), processing_class=tiny_tokenizer()).train()
    model = ["--model", str(base / "start")]
    assert error_of(capsys, str(run), "--example", "3").startswith("--model: expected the policy at the start")
    assert main(["show", str(run), "--example", "3", *model]) == 0
    page = (run / "show-example-3.html").read_text(encoding="utf-8")
    shutil.rmtree(run / "tokens")
    assert error_of(capsys, str(run), "--example", "3", *model).startswith("--dataset: expected the training data")
    assert main(["show", str(run), "--example", "3", *model, "--dataset", str(base / "dpo.jsonl")]) == 0
    assert (run / "show-example-3.html").read_text(encoding="utf-8") == page


def test_a_model_other_than_the_runs_is_refused(
    run_of: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_model(hidden_size=16).save_pretrained(tmp_path)
    said = error_of(capsys, str(run_of(sync_every=3)), "--example", "3", "--model", str(tmp_path))
    assert said.startswith(f"{tmp_path}: expected the run's model {{'class': 'LlamaForCausalLM'")
