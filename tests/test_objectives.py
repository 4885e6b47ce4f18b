"""An objective is one class, built in or in a user's file."""

import ast
import json
import pickle
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import humanline_fused
from humanline_fused import HumanlineClamp, TokenLogp
from humanline_fused.cli import main
from humanline_fused.looking.show import show_run
from humanline_fused.training import (
    GROUPS,
    LABELS,
    OBJECTIVES,
    PAIRS,
    HumanlineTrainer,
    LossInputs,
    Objective,
    pair_metrics,
)
from humanline_fused.training.objectives import find_objective
from humanline_fused.training.objectives.trial import check_loss
from tests.tiny_model import losses, records, tiny_config, tiny_model, tiny_tokenizer, tiny_trainer

PACKAGE = Path(humanline_fused.__file__).parent
ROOT = PACKAGE.parent
EXEMPT = ("training/objectives/", "demo/", "integrations/")


def documented_loss() -> str:
    """Return the file my_losses.py of docs/losses.md."""
    page = (ROOT / "docs" / "losses.md").read_text(encoding="utf-8")
    found = re.search(r"<!-- my_losses.py -->\n```python\n(.*?)```", page, flags=re.DOTALL)
    assert found
    return found[1]


class APOZero(Objective):
    """The documented loss."""

    name = "apo_zero"
    form = PAIRS

    def loss(self, tokens: Any, config: Any) -> Any:
        rewards = config.beta * tokens.sums(tokens.log_ratio)
        chosen, rejected = rewards.chunk(2)
        return (1 - chosen.sigmoid() + rejected.sigmoid()).mean(), pair_metrics(rewards, tokens.sums(tokens.logp))


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
    assert lines[0]["loss"] == pytest.approx(1 - sigmoid + (1 - sigmoid), abs=1e-6)
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
    settings = {"objective": "tests.test_objectives:APOZero", "log_epsilon_P": -0.05, "log_epsilon_R": 0.05}
    runs = []
    for name, more in (("ahead", {}), ("copy", {"reference": "copy"}), ("logits", {"head": "logits"})):
        trainer = tiny_trainer(tmp_path / name, train_dataset=records("dpo", 10), **settings, **more)
        trainer.train()
        runs.append(trainer)
    assert losses(runs[0]) == losses(runs[1])
    assert losses(runs[2]) == pytest.approx(losses(runs[0]), rel=1e-5)
    assert min(line["humanline/unclamped"] for line in runs[0].state.log_history if "loss" in line) < 1


KINDS = {PAIRS: "dpo", LABELS: "kto", GROUPS: "grpo"}


def trainer_with(objective: Any, output_dir: Path, number: int = 10, **settings: Any) -> HumanlineTrainer:
    config = tiny_config(output_dir, **settings)
    data = records(KINDS.get(getattr(objective, "form", None), "dpo"), number)
    given = {"train_dataset": data, "eval_dataset": data, "processing_class": tiny_tokenizer()}
    return HumanlineTrainer(tiny_model(), config, objective=objective, **given)


def test_an_object_trains_as_its_name_does(tmp_path: Path):
    given = trainer_with(APOZero(), tmp_path / "given")
    given.train()
    named = tiny_trainer(
        tmp_path / "named", objective="tests.test_objectives:APOZero", train_dataset=records("dpo", 10)
    )
    named.train()
    assert losses(given) == losses(named)
    assert given.args.objective_name == given.identity()["batches"]["objective"] == "apo_zero"
    assert given.identity() == named.identity()


def test_a_loss_of_labels_gets_them_and_the_mismatched_pairs(tmp_path: Path):
    class Signed(Objective):
        name, form, mismatched, kls, labels = "signed", LABELS, True, [], []

        def loss(self, tokens: Any, config: Any) -> Any:
            sign = tokens.columns["desirable"].float() * 2 - 1
            self.kls.append(float(tokens.kl))
            self.labels.append(tokens.columns["desirable"].tolist())
            return -(sign * tokens.sums(tokens.log_ratio) / tokens.lengths).mean(), {}

    trainer = trainer_with(Signed(), tmp_path, per_device_train_batch_size=3)
    trainer.train()
    assert max(Signed.kls) > 0
    window = trainer.plan.window(5, 0)[0].ids
    assert Signed.labels[-1] == [trainer.train_examples[i].weight > 0 for i in window]


class Plain(Objective):
    """GRPO without a clip, with a beta of its own."""

    name, form, default_beta, token_mean, betas = "plain", GROUPS, 0.25, True, []

    def loss(self, tokens: Any, config: Any) -> Any:
        self.betas.append(config.beta)
        ratio = tokens.log_ratio.exp().where(tokens.loss_mask, 0.0)
        loss = -(tokens.columns["advantages"][:, None] * ratio).sum() / tokens.num_items
        return loss, {"length": tokens.lengths, "one": 1}


def test_a_loss_of_groups_has_its_own_default_beta(tmp_path: Path):
    Plain.betas.clear()
    trainer_with(Plain(), tmp_path, beta=None, max_steps=1).train()
    assert set(Plain.betas) == {0.25}


def test_a_loss_in_the_config_takes_the_settings_of_its_form(tmp_path: Path):
    config = tiny_config(tmp_path, objective=Plain(), scale_rewards="none", max_steps=1)
    data = records("grpo", 10)
    trainer = HumanlineTrainer(tiny_model(), config, train_dataset=data, processing_class=tiny_tokenizer())
    trainer.train()
    first, second = trainer.train_examples[:2]
    assert first.weight == (first.reward - second.reward) / 2
    assert trainer.state.log_history[0]["one"] == 1
    assert replace(config, beta=0.5).make_objective() is config.objective


@pytest.mark.parametrize("size", [3, 8])
def test_an_evaluation_of_a_token_mean_does_not_depend_on_its_batch_size(tmp_path: Path, size: int):
    evaluated = []
    for batch_size in (size, 10):
        settings = {"max_steps": 2, "per_device_eval_batch_size": batch_size}
        trainer = trainer_with(Plain(), tmp_path / str(batch_size), **settings)
        trainer.train()
        evaluated.append(trainer.evaluate()["eval_loss"])
    assert evaluated[0] == pytest.approx(evaluated[1], rel=1e-5)  # float32 sums in another order


def test_a_run_of_a_class_that_cannot_be_imported_is_shown_and_resumed(tmp_path: Path):
    class Local(APOZero):
        name = "local"

        def __init__(self, margin: float) -> None:
            self.margin = margin

    tiny_model().save_pretrained(tmp_path / "start")
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in records("dpo", 10)), encoding="utf-8")

    def run(name: str, **more: Any) -> HumanlineTrainer:
        settings = {"model": str(tmp_path / "start"), "dataset": str(data), "save_strategy": "steps", "save_steps": 3}
        config = tiny_config(tmp_path / name, **settings)
        trainer = HumanlineTrainer(args=config, processing_class=tiny_tokenizer(), objective=Local(0.5))
        trainer.train(**more)
        return trainer

    whole = run("whole")
    page = show_run(tmp_path / "whole", step=3).read_text(encoding="utf-8")
    assert "local" in page
    assert page.count("<h3>chosen</h3>") == 2
    shutil.copytree(tmp_path / "whole" / "checkpoint-3", tmp_path / "cut" / "checkpoint-3")
    resumed = run("cut", resume_from_checkpoint=True)
    assert losses(resumed)[-3:] == losses(whole)[-3:]
    assert pickle.loads(pickle.dumps(whole.args)).objective == "local"


def test_a_loss_with_random_numbers_or_a_state_is_no_fault_and_starts_the_run_fresh(tmp_path: Path):
    class Noisy(Objective):
        name, form = "noisy", PAIRS

        def __init__(self) -> None:
            self.steps = 0

        def loss(self, tokens: Any, config: Any) -> Any:
            if torch.is_grad_enabled():
                self.steps += 1
            noise = torch.rand_like(tokens.log_ratio)
            return -(noise * tokens.log_ratio).sum() / tokens.num_items, {}

    noisy = Noisy()
    trainer_with(noisy, tmp_path).train()
    assert noisy.steps == 6


# Bad input: an error before the first step names the part


def loss_that(compute: Any, form: Any = PAIRS) -> type[Objective]:
    return type("Mine", (Objective,), {"name": "mine", "form": form, "loss": compute})


@pytest.mark.parametrize(
    ("objective", "error", "said"),
    [
        (object(), TypeError, "expected an instance of humanline_fused.training.Objective, got object"),
        (type("Mine", (Objective,), {"form": PAIRS})(), TypeError, r"Mine.name: expected a string, got None"),
        (type("Mine", (Objective,), {"name": "mine"})(), TypeError, r"Mine.form: expected PAIRS, LABELS or GROUPS"),
        (type("Mine", (Objective,), {"name": "m", "form": PAIRS})(), TypeError, r"Mine.loss: expected a method loss"),
        (loss_that(lambda self, tokens, config: tokens.log_ratio.sum())(), TypeError, "expected a loss and a mapping"),
        (
            loss_that(lambda self, tokens, config: (tokens.sums(tokens.log_ratio), {}))(),
            TypeError,
            r"Mine.loss: expected a scalar loss, a tensor of shape \[\], got \[4\]",
        ),
        (loss_that(lambda self, tokens, config: (0.5, {}))(), TypeError, "expected a scalar loss, .* got float"),
        (
            loss_that(lambda self, tokens, config: (tokens.log_ratio.detach().sum(), {}))(),
            TypeError,
            "Mine.loss: expected a loss with a graph to the policy's log-probs, got one without",
        ),
        (
            loss_that(lambda self, tokens, config: (tokens.log_ratio.sum().log(), {}))(),
            ValueError,
            r"Mine.loss: expected a finite loss and gradient where the policy is the reference, .* got -inf",
        ),
        (
            loss_that(lambda self, tokens, config: (tokens.log_ratio.mean(), {}))(),
            ValueError,
            "expected a loss of the tokens that loss_mask counts alone, .* divide by tokens.lengths",
        ),
        (
            loss_that(lambda self, tokens, config: (tokens.log_ratio.sum(), {"mine": "low"}))(),
            TypeError,
            "metric 'mine': expected a number, a tensor with entries or a Weighted, got 'low'",
        ),
        (
            loss_that(lambda self, tokens, config: (tokens.columns["desirable"].sum(), {}))(),
            ValueError,
            "Mine.loss failed on the first batch: KeyError: 'desirable'",
        ),
    ],
)
def test_a_loss_that_lacks_a_part_is_refused_before_the_first_step(
    tmp_path: Path, objective: Any, error: type[Exception], said: str
):
    trained: list[HumanlineTrainer] = []

    def train() -> None:
        trained.append(trainer_with(objective, tmp_path))
        trained[0].train()

    with pytest.raises(error, match=said):
        train()
    start = tiny_model().state_dict()
    for trainer in trained:
        assert trainer.state.global_step == 0
        assert all(torch.equal(start[name], tensor) for name, tensor in trainer.model.state_dict().items())


@pytest.mark.parametrize(
    ("name", "arguments", "error", "said"),
    [
        ("ktoo", None, ValueError, r"expected 'dpo', 'kto', 'grpo' or 'module:Class' .* did you mean kto\?"),
        ("tests.test_objectives:Nothing", None, ValueError, "to be a class that can be imported"),
        ("tests.test_objectives:records", None, TypeError, "to be a subclass of humanline_fused.training.Objective"),
        ("tests.test_objectives:APOZero", {"tau": 1}, TypeError, "APOZero does not take {'tau': 1}"),
    ],
)
def test_an_objective_that_cannot_be_found_is_named_in_the_error(
    name: str, arguments: Any, error: type[Exception], said: str
):
    with pytest.raises(error, match=said):
        find_objective(name, arguments)


def test_settings_of_another_objective_or_two_objectives_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"epsilon: expected 0.2 \(a setting of grpo, not of apo_zero\), got 0.1"):
        tiny_config(tmp_path, objective="tests.test_objectives:APOZero", epsilon=0.1)
    with pytest.raises(ValueError, match=r"objective_kwargs: expected None with objective='dpo'"):
        tiny_config(tmp_path, objective_kwargs={"margin": 1})
    with pytest.raises(ValueError, match=r"objective_kwargs: expected a mapping in JSON, got '\[1\]'"):
        tiny_config(tmp_path, objective="tests.test_objectives:APOZero", objective_kwargs="[1]")
    with pytest.raises(ValueError, match=r"objective: expected one, got 'kto' in args and '"):
        HumanlineTrainer(tiny_model(), tiny_config(tmp_path, objective="kto"), objective=APOZero())


CONFIG = SimpleNamespace(impl="eager", humanline_clamp=HumanlineClamp(), beta=0.1)


def random_inputs(form: Any, length: int) -> LossInputs:
    """Four sequences, about a quarter of whose tokens do not count, with advantages that add up to 0."""
    g = torch.Generator().manual_seed(0)
    logp = -torch.rand(4, length, generator=g)
    mask = torch.rand(4, length, generator=g) > 0.25
    mask[:, 0] = True
    columns = {"advantages": torch.tensor([1.0, -1.0, 0.5, -0.5])} if form is GROUPS else {}
    return LossInputs(TokenLogp(logp), TokenLogp(logp), torch.zeros(4, length, dtype=torch.long), mask, columns)


WRONG = {
    "mean over a row": lambda t: -t.log_ratio.mean(1).sigmoid().log().mean(),
    "ratio of masked tokens": lambda t: -t.log_ratio.exp().sum() / t.num_items,
    "mean over the batch": lambda t: (t.log_ratio - 0.5).square().mean(),
    "weighed ratios of masked tokens": lambda t: -(next(iter(t.columns.values()))[:, None] * t.log_ratio.exp()).sum(),
}
RIGHT = {
    "mean over a sequence": lambda t: -(t.sums(t.log_ratio) / t.lengths).sigmoid().log().mean(),
    "sum over a sequence": lambda t: -(0.1 * t.sums(t.log_ratio)).sigmoid().log().mean(),
    "mean over tokens": lambda t: (t.log_ratio.exp() - 1).sum() / t.num_items,
    "log-probs": lambda t: -t.logp.sum() / t.num_items,
    "large": lambda t: 1e6 * (t.sums(t.log_ratio) / t.lengths - 0.5).square().mean(),
}


@pytest.mark.parametrize("length", [4, 512, 2048])
@pytest.mark.parametrize("name", [*WRONG, *RIGHT])
def test_a_loss_that_counts_padding_is_refused_at_any_length_and_no_other(name: str, length: int):
    mine = loss_that(lambda self, tokens, config: ((WRONG | RIGHT)[name](tokens), {}), GROUPS)()
    if name in RIGHT:
        check_loss(mine, random_inputs(GROUPS, length), CONFIG)
        return
    with pytest.raises(ValueError, match="expected a loss of the tokens that loss_mask counts alone"):
        check_loss(mine, random_inputs(GROUPS, length), CONFIG)


# DPO's loss types in the trainer


@pytest.mark.parametrize(("loss_type", "at_the_start"), [("ipo", 1.0), ("hinge", 1.0), ("sigmoid_norm", 0.6931)])
def test_each_loss_type_of_dpo_begins_with_the_loss_of_a_margin_of_0(
    tmp_path: Path, loss_type: str, at_the_start: float
):
    settings = {"loss_type": loss_type, "train_dataset": records("dpo", 10)}
    fused = tiny_trainer(tmp_path / "fused", **settings)
    fused.train()
    logits = tiny_trainer(tmp_path / "logits", head="logits", reference="copy", **settings)
    logits.train()
    assert losses(fused)[0] == pytest.approx(at_the_start, abs=1e-4)  # beta is 0.5: (−½ / ½)² for IPO
    assert losses(fused) == pytest.approx(losses(logits), rel=1e-5)
    assert len(set(losses(fused))) == 6
