"""An objective is one class, built in or in a user's file."""

import ast
import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import humanline_fused
from humanline_fused import TokenLogp
from humanline_fused.cli import main
from humanline_fused.training import OBJECTIVES, LossInputs
from humanline_fused.training.objectives import find_objective
from tests.error_budget import FLOAT32_EPSILON
from tests.tiny_model import losses, records, tiny_config, tiny_model, tiny_tokenizer, tiny_trainer

PACKAGE = Path(humanline_fused.__file__).parent
ROOT = PACKAGE.parent
EXEMPT = ("training/objectives/", "demo/", "integrations/", "tiny/")

DESCENT = {"optim": "sgd", "learning_rate": 0.1}
"""Plain gradient descent, because Adam would scale a gradient of pure rounding error up to a full update."""

ROUNDING = 16 * FLOAT32_EPSILON
"""Of losses of about 1, each from at most sixteen sums of log-probs; the rounding of six such updates is less."""


def documented_loss() -> str:
    """Return the file my_losses.py of docs/losses.md."""
    page = (ROOT / "docs" / "losses.md").read_text(encoding="utf-8")
    found = re.search(r"<!-- my_losses.py -->\n```python\n(.*?)```", page, flags=re.DOTALL)
    assert found
    return found[1]


def docstrings(tree: ast.AST) -> set[int]:
    """Return the ids of constants that are whole statements: docstrings of modules, functions and attributes."""
    return {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}


def constants(file: Path) -> list[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    documentation = docstrings(tree)
    nodes = (node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in documentation)
    return [node.value for node in nodes if isinstance(node.value, str)]


def test_no_module_outside_the_table_holds_an_objectives_name():
    name = re.compile(rf"\b({'|'.join(OBJECTIVES)})\b")
    held = {
        str(file.relative_to(PACKAGE)): found
        for file in sorted(PACKAGE.rglob("*.py"))
        if not str(file.relative_to(PACKAGE)).startswith(EXEMPT)
        and (found := [text for text in constants(file) if name.search(text)])
    }
    assert held == {}


# A loss in a user's file, without a change to the package


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder with an initial model, pairs, prompts, the documented loss and a reward."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "my_losses.py").write_text(documented_loss(), encoding="utf-8")
    (tmp_path / "my_reward.py").write_text(
        "def more_w1(completions, **columns):\n    return [float(c.count('1')) + len(c) / 100 for c in completions]\n"
    )
    tiny_model().save_pretrained("start")
    tiny_tokenizer().save_pretrained("start")
    for name, number, seed in (("pairs", 8, 0), ("held_out", 4, 1)):
        rows = records("dpo", number, seed=seed)
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return tmp_path


SETTINGS = [
    *("--model", "start", "--max_steps", "3", "--per_device_train_batch_size", "2", "--max_length", "32"),
    *("--logging_steps", "1", "--save_steps", "1", "--learning_rate", "1e-3", "--use_cpu", "true"),
    *("--disable_tqdm", "true", "--warmup_steps", "0", "--output_dir", "run"),
]


def logged(run: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]


def test_the_documented_loss_has_at_most_forty_lines():
    assert len(documented_loss().splitlines()) <= 40


def test_a_loss_in_a_file_trains_evaluates_resumes_and_is_shown(workplace: Path, capsys: pytest.CaptureFixture[str]):
    config = "objective: my_losses:APOZero\nobjective_kwargs: {margin: 0.1}\ndataset: pairs.jsonl\n"
    Path("run.yaml").write_text(config + "eval_dataset: held_out.jsonl\neval_strategy: epoch\n", encoding="utf-8")
    assert main(["train", "--config", "run.yaml", *SETTINGS]) == 0
    assert capsys.readouterr().out.startswith("apo_zero: clamp [-1.5, 1.5] nats")
    lines = [line for line in logged("run") if "loss" in line]
    sigmoid = 1 / (1 + 2.718281828459045**0.1)
    assert lines[0]["loss"] == pytest.approx(1 - sigmoid + (1 - sigmoid), abs=ROUNDING)
    assert len({line["loss"] for line in lines}) == 3
    assert {"rewards/margins", "humanline/unclamped"} <= lines[0].keys()
    evaluated = [line for line in logged("run") if "eval_loss" in line]
    assert {"eval_rewards_initial/margins", "eval_kl_initial"} <= evaluated[-1].keys()

    assert main(["show", "run", "--step", "2"]) == 0
    page = Path("run/show-step-2.html").read_text(encoding="utf-8")
    assert "apo_zero" in page
    assert "<h3>chosen</h3>" in page
    assert "<h3>rejected</h3>" in page
    assert "advantage" not in page

    whole = torch.load("run/checkpoint-3/optimizer.pt", weights_only=True)["state"]
    shutil.rmtree("run/checkpoint-3")
    assert main(["train", "--config", "run.yaml", *SETTINGS, "--resume_from_checkpoint", "auto"]) == 0
    resumed = torch.load("run/checkpoint-3/optimizer.pt", weights_only=True)["state"]
    assert all(torch.equal(whole[i]["exp_avg"], resumed[i]["exp_avg"]) for i in whole)


def test_the_data_command_accepts_a_loss_in_a_file(workplace: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["data", "pairs.jsonl", "--objective", "my_losses:APOZero", "--model", "start"]) == 0
    out = capsys.readouterr().out
    assert "for objective='dpo' or objective='kto' or objective='apo_zero'" in out
    assert re.search(r"^  chosen$", out, flags=re.MULTILINE)
    assert main(["data", "pairs.jsonl", "--objective", "grop"]) == 2
    assert "did you mean grpo?" in capsys.readouterr().err
    for given, said in (
        (["--objective", "my_losses:APOZero", "--objective_kwargs", "[1]"], "expected a mapping in JSON, got '[1]'"),
        (["--objective", "my_losses:APOZero", "--objective_kwargs", "{"], "expected a mapping in JSON, got '{'"),
        (["--objective_kwargs", '{"margin": 1}'], "expected --objective module:Class beside it"),
        (["--objective", "dpo", "--objective_kwargs", '{"margin": 1}'], "dpo does not take {'margin': 1}"),
    ):
        assert main(["data", "pairs.jsonl", *given]) == 2
        assert said in capsys.readouterr().err


def test_a_round_of_a_loss_in_a_file_is_replayed_as_it_was_trained_on(workplace: Path):
    rounds = ["--rollout_every", "2", "--reward", "my_reward:more_w1", "--reference", "copy", "--num_generations", "4"]
    options = ["--objective", "my_losses:APOZero", "--dataset", "pairs.jsonl", "--max_completion_length", "6"]
    assert main(["train", *options, *rounds, *SETTINGS]) == 0
    assert main(["show", "run", "--step", "1"]) == 0
    page = Path("run/show-step-1.html").read_text(encoding="utf-8")
    assert page.count("<h3>chosen</h3>") == page.count("<h3>rejected</h3>") == 2
    rewards: dict[int, list[float]] = {}
    for line in Path("run/completions.jsonl").read_text().splitlines():
        sample = json.loads(line)
        if sample["step"] == 0:
            rewards.setdefault(sample["prompt_index"], []).append(sample["reward"])
    assert len(rewards) == 4  # one pair per prompt, two steps of two pairs


def test_look_ahead_and_copy_give_bitwise_the_same_losses_and_the_head_agrees(tmp_path: Path):
    settings = DESCENT | {"objective": "tests.user_loss:APOZero", "log_epsilon_P": -0.05, "log_epsilon_R": 0.05}
    runs = []
    for name, more in (("ahead", {}), ("copy", {"reference": "copy"}), ("logits", {"head": "logits"})):
        trainer = tiny_trainer(tmp_path / name, train_dataset=records("dpo", 10), **settings, **more)
        trainer.train()
        runs.append(trainer)
    assert losses(runs[0]) == losses(runs[1])
    assert losses(runs[2]) == pytest.approx(losses(runs[0]), abs=ROUNDING)
    assert min(line["humanline/unclamped"] for line in runs[0].state.log_history if "loss" in line) < 1


# DPO's loss types in the trainer


@pytest.mark.parametrize(("loss_type", "at_the_start"), [("ipo", 1.0), ("hinge", 1.0), ("sigmoid_norm", math.log(2))])
def test_each_loss_type_of_dpo_begins_with_the_loss_of_a_margin_of_0(
    tmp_path: Path, loss_type: str, at_the_start: float
):
    settings = DESCENT | {"loss_type": loss_type, "train_dataset": records("dpo", 10)}
    fused = tiny_trainer(tmp_path / "fused", **settings)
    fused.train()
    logits = tiny_trainer(tmp_path / "logits", head="logits", reference="copy", **settings)
    logits.train()
    assert losses(fused)[0] == pytest.approx(at_the_start, abs=ROUNDING)  # beta is 0.5: (−½ / ½)² for IPO
    assert losses(fused) == pytest.approx(losses(logits), abs=ROUNDING)
    assert len(set(losses(fused))) == 6


def test_the_weights_of_a_run_s_config_are_those_of_its_loss(tmp_path: Path):
    """Log-ratios of ±½, and a reference point of 0."""
    ids, columns = torch.zeros(2, 1, dtype=torch.int64), {"desirable": torch.tensor([True, False])}
    policy, reference = TokenLogp(torch.tensor([[-1.0], [-2.0]])), TokenLogp(torch.tensor([[-1.5], [-1.5]]))
    inputs = LossInputs(policy, reference, ids, ids == 0, columns, kl=torch.tensor(0.0))
    config = tiny_config(tmp_path, beta=0.5, label_smoothing=0.25, log_epsilon_P=-1.5, log_epsilon_R=1.5)
    expected = 0.75 * math.log1p(math.exp(-0.5)) + 0.25 * math.log1p(math.exp(0.5))
    assert find_objective("dpo").compute(inputs, config).loss.item() == pytest.approx(expected, rel=1e-6)
    config = tiny_config(tmp_path, objective="kto", beta=0.5, desirable_weight=2.0, undesirable_weight=3.0)
    expected = (2 + 3) / 2 / (1 + math.exp(0.25))
    assert find_objective("kto").compute(inputs, config).loss.item() == pytest.approx(expected, rel=1e-6)
