"""A run computes the same whether its sequences stand in padded rows or behind shared prompts in one row."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertLMHeadModel

from humanline_fused.training import HumanlineTrainer
from humanline_fused.training.data.batch import collate
from humanline_fused.training.data.examples import Example
from humanline_fused.training.data.plan import MicroBatch
from humanline_fused.training.objectives import find_objective
from humanline_fused.training.scoring import Scorer
from tests.batches import labelled
from tests.test_rollout import rounds_trainer
from tests.test_trainer_head import CLOCK, DESCENT, DRIFT_OF_STEP, ROUNDING
from tests.tiny_model import losses, records, tiny_config, tiny_model, tiny_trainer, trained

TIGHT = {"log_epsilon_P": -0.02, "log_epsilon_R": 0.02}
"""Bounds that bind."""

STEPS: dict[str, Any] = {"max_steps": 4, "eval_strategy": "steps", "eval_steps": 2}
"""With ``sync_every=2`` the last step has another reference than the first ones."""


def rows(objective: str, number: int = 10, seed: int = 0) -> list[dict[str, Any]]:
    """Return data with prompts of more than eight tokens."""
    return [
        row | {"prompt": f"w{i} w1 w2 w3 w4 w5 w6 {row['prompt']}"}
        for i, row in enumerate(records(objective, number, seed))
    ]


def run(folder: Path, layout: str, objective: str = "dpo", **settings: Any) -> HumanlineTrainer:
    data = {"train_dataset": rows(objective), "eval_dataset": rows(objective, 8, seed=5)}
    return trained(folder, layout=layout, objective=objective, **data | STEPS | DESCENT | TIGHT | settings)


def assert_equal_runs(first: HumanlineTrainer, second: HumanlineTrainer) -> None:
    """Both logs have the same names and, except for rounding, numbers, and the weights are the same."""
    for mine, other in zip(first.state.log_history, second.state.log_history, strict=True):
        assert mine.keys() == other.keys()
        for name in mine.keys() - {"total_flos"}:
            if not CLOCK.match(name):
                assert mine[name] == pytest.approx(other[name], rel=ROUNDING, abs=ROUNDING), name
    weights = [torch.cat([p.detach().flatten() for p in t.model.parameters()]) for t in (first, second)]
    torch.testing.assert_close(*weights, rtol=0, atol=first.state.global_step * DRIFT_OF_STEP)
    assert len(set(losses(first))) == first.state.global_step


@pytest.mark.parametrize(
    ("objective", "head"), [("dpo", "fused"), ("kto", "fused"), ("kto", "logits"), ("grpo", "logits")]
)
def test_padded_rows_and_shared_prompts_give_the_same_run(tmp_path: Path, objective: str, head: str):
    settings = {"objective": objective, "head": head, "sync_every": 2, "gradient_accumulation_steps": 2}
    padded, shared = (run(tmp_path / layout, layout, **settings) for layout in ("padded", "auto"))
    assert [r.layout.layout for r in (padded, shared)] == ["padded", "shared_prompt"]
    assert_equal_runs(padded, shared)


@pytest.mark.parametrize(
    "settings",
    [
        {"perception": "sampling", "gamma_P": 20.0, "log_epsilon_P": -1.5, "log_epsilon_R": 1.5},
        {"reference": "frozen"},
        {"objective": "tests.user_loss:APOZero", "train_dataset": rows("dpo"), "eval_dataset": rows("dpo", 8, 5)},
    ],
)
def test_so_do_sampling_a_frozen_reference_and_a_user_defined_loss(tmp_path: Path, settings: dict[str, Any]):
    assert_equal_runs(*(run(tmp_path / layout, layout, **settings) for layout in ("padded", "shared_prompt")))


@pytest.mark.parametrize(
    ("objective", "layout"), [("dpo", "padded"), ("kto", "padded"), ("grpo", "padded"), ("kto", "shared_prompt")]
)
def test_look_ahead_is_the_copy_bit_by_bit_in_every_layout(tmp_path: Path, objective: str, layout: str):
    ahead, copied = (
        run(tmp_path / kind, layout, objective, reference=kind, sync_every=2) for kind in ("lookahead", "copy")
    )
    assert losses(ahead) == losses(copied)
    assert all(map(torch.equal, ahead.model.parameters(), copied.model.parameters()))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> HumanlineTrainer:
    return run(tmp_path_factory.mktemp("plain"), "shared_prompt")


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_does_not_change_a_bit(tmp_path: Path, plain: HumanlineTrainer, reentrant: bool):
    kwargs = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": reentrant}}
    checkpointed = run(tmp_path, "shared_prompt", **kwargs)
    assert losses(plain) == losses(checkpointed)
    assert all(map(torch.equal, plain.model.parameters(), checkpointed.model.parameters()))


def test_a_run_resumes_in_another_layout(tmp_path: Path):
    settings: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2, "sync_every": 3}
    whole = run(tmp_path / "run", "padded", **settings)
    data = {"train_dataset": rows("dpo"), "eval_dataset": rows("dpo", 8, seed=5)}
    resumed = tiny_trainer(tmp_path / "again", layout="shared_prompt", **data | STEPS | DESCENT | TIGHT | settings)
    resumed.train(str(tmp_path / "run" / "checkpoint-2"))
    assert_equal_runs(whole, resumed)


@pytest.mark.parametrize("name", ["dpo", "grpo", "tests.user_loss:APOZero"])
def test_sorted_rows_give_the_same_steps_with_less_padding(tmp_path: Path, name: str):
    data = {"train_dataset": rows("grpo" if name == "grpo" else "dpo", 24)}
    data["eval_dataset"] = data["train_dataset"][:4]
    size = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "sync_every": 2}
    runs = {layout: run(tmp_path / layout, layout, name, **data | size) for layout in ("padded", "sorted")}
    assert_equal_runs(*runs.values())
    tokens = {name: sum(b.input_ids.numel() for s in range(4) for b in r._window(s)) for name, r in runs.items()}
    assert tokens["sorted"] < tokens["padded"]


@pytest.mark.parametrize("head", ["fused", "logits"])
def test_a_loss_may_run_another_model(tmp_path: Path, head: str, monkeypatch: pytest.MonkeyPatch):
    trainer = tiny_trainer(tmp_path, layout="shared_prompt", head=head, train_dataset=rows("dpo"))
    trainer.choose_layout()
    (batch,) = trainer._window(0)
    judge, ids = tiny_model(seed=1).eval(), batch.input_ids.flip(1)  # as many tokens as the row has
    alone, seen, compute = judge(input_ids=ids).logits, [], trainer.objective.compute

    def judged(*inputs: Any) -> Any:
        seen.append(judge(input_ids=ids).logits)
        return compute(*inputs)

    monkeypatch.setattr(trainer.objective, "compute", judged)
    (scores,) = trainer.scorer.score(trainer.model, [batch])
    trainer.scorer.loss(trainer.model, batch.with_scores(scores))
    assert torch.equal(seen[0], alone)


# The tokens that a step computes


class Bodies:
    """Tokens of each forward pass of a model's body, with True for a pass with a gradient."""

    def __init__(self, model: nn.Module) -> None:
        self.seen: list[tuple[int, bool]] = []
        model.register_forward_pre_hook(self, with_kwargs=True)

    def __call__(self, model: nn.Module, args: Any, kwargs: Any) -> None:
        self.seen.append((kwargs["input_ids"].numel(), torch.is_grad_enabled()))


def watched(folder: Path, objective: str, data: list[dict[str, Any]], **settings: Any) -> tuple[Bodies, list[Example]]:
    """Return the forward passes of the second step of a run, and its examples."""
    size = {"per_device_train_batch_size": 4, "max_steps": 2, "sync_every": 2}
    trainer = tiny_trainer(folder, objective=objective, train_dataset=data, **size | settings)
    bodies = Bodies(trainer.model.model)
    trainer.train()
    examples = [trainer.train_examples[i] for ids in trainer.plan.global_window(1) for i in ids]
    return bodies, examples


def lengths(examples: list[Example]) -> tuple[int, int, int]:
    """Return the tokens of distinct prompts, the tokens of completions without their last, and their number."""
    prompts = {tuple(e.prompt_ids.tolist()) for e in examples}
    completions = [c for e in examples for c in e.completions]
    return sum(map(len, prompts)), sum(len(c) - 1 for c in completions), len(completions)


def distinct(examples: list[Example]) -> int:
    """Return the number of different beginnings of the sequences without their last token."""
    sequences = [[*e.prompt_ids.tolist(), *c.tolist()][:-1] for e in examples for c in e.completions]
    return len({tuple(ids[:end]) for ids in sequences for end in range(1, len(ids) + 1)})


def assert_shared(bodies: Bodies, examples: list[Example]) -> None:
    """The step of the examples computed each token once, in scoring and in training, and no padding."""
    tokens = distinct(examples)
    assert bodies.seen[-1] == (tokens, True)
    assert (tokens, False) in bodies.seen
    prompts, completions, number = lengths(examples)
    assert tokens <= prompts + completions < sum(len(e.prompt_ids) * len(e.completions) for e in examples) + completions
    assert number > len({tuple(e.prompt_ids.tolist()) for e in examples})


@pytest.mark.parametrize("objective", ["dpo", "grpo"])
def test_each_prompt_is_computed_once_and_no_padding(tmp_path: Path, objective: str):
    assert_shared(*watched(tmp_path, objective, rows(objective, 8)))


def test_the_samples_of_a_round_share_their_prompts(tmp_path: Path):
    prompts = [{"prompt": row["prompt"], "wanted": "w1"} for row in rows("dpo", 8)]
    size = {"per_device_train_batch_size": 4, "rollout_every": 1, "max_steps": 2}
    trainer = rounds_trainer(tmp_path, objective="grpo", train_dataset=prompts, **size)
    bodies = Bodies(trainer.model.model)
    trainer.train()
    assert_shared(bodies, list(trainer.train_examples))


@pytest.mark.parametrize(("prompt", "completion", "together"), [(6, 6, False), (20, 4, True)])
def test_mismatched_completions_stand_behind_the_same_prompts(
    tmp_path: Path, prompt: int, completion: int, together: bool
):
    bodies, examples = watched(tmp_path, "kto", labelled(prompt, completion))
    prompts, completions, _ = lengths(examples)
    assert (prompts, completions) == (4 * prompt, 4 * completion)  # the end of the text is a token too
    both, one = prompts + 2 * completions, prompts + completions
    assert (both, False) in bodies.seen
    trained_on = [(both, True)] if together else [(one, False), (one, True)]
    assert bodies.seen[-len(trained_on) :] == trained_on


def test_one_body_for_mismatched_pairs_trains_as_two_do(tmp_path: Path):
    data = {
        "train_dataset": labelled(20, 4),
        "eval_dataset": labelled(20, 4),
        "log_epsilon_P": -1.5,
        "log_epsilon_R": 1.5,
    }
    padded, shared = (run(tmp_path / layout, layout, "kto", **data) for layout in ("padded", "shared_prompt"))
    assert shared._window(3)[0].trains_together
    assert max(line["kl"] for line in shared.state.log_history if "kl" in line) > 0
    assert_equal_runs(padded, shared)


@pytest.mark.parametrize("reference", ["lookahead", "copy"])
def test_under_mixed_precision_prompts_are_shared_too(tmp_path: Path, reference: str):
    shared = run(tmp_path, "auto", reference=reference, bf16=True, max_steps=2)
    assert shared.layout.layout == "shared_prompt"
    assert shared.state.log_history[0]["humanline/mean_ratio"] == 1  # policy and reference are one at the start


# Sequences without a token that counts


@pytest.mark.parametrize("layout", ["padded", "shared_prompt"])
@pytest.mark.parametrize("head", ["fused", "logits"])
def test_a_batch_without_a_token_that_counts_has_a_loss_of_0_with_a_graph(
    tmp_path: Path, objective: str, layout: str, head: str
):
    kind = find_objective(objective)
    ids = torch.arange(5, 10, dtype=torch.int32)
    none = torch.zeros(5, dtype=torch.bool)
    example = Example(ids, (ids,) * kind.form.sides, 1.0, masks=(none,) * kind.form.sides)
    batch = collate([example, example], MicroBatch((0, 1), (1, 0)), kind, pad_token_id=0, max_length=32, layout=layout)
    assert batch.target_ids.shape == (1, 0)
    trainer = tiny_trainer(tmp_path, objective=objective, head=head)
    scorer = Scorer(trainer.args, trainer.objective)
    model = trainer.model.train()
    loss, _ = scorer.loss(model, batch.with_scores(scorer.score(model, [batch], with_entropy=True)[0]))
    loss.backward()
    assert loss == 0
    gradients = [p.grad for p in model.parameters()]
    assert all(gradient is not None and not gradient.any() for gradient in gradients)


# The choice


def choices(text: str) -> list[str]:
    return re.findall(r"^model: .*; layout: (.*)$", text, re.MULTILINE)


def test_the_start_block_names_the_layout_and_the_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    dropping = {"disable_dropout": False, "clamp": False, "model": tiny_model(attention_dropout=0.1)}
    for number, settings in enumerate(({}, {"layout": "padded"}, dropping)):
        trained(tmp_path / str(number), max_steps=1, **settings)
    trained(tmp_path / "kto", max_steps=1, objective="kto", **dropping | {"model": tiny_model(attention_dropout=0.1)})
    said = choices(capsys.readouterr().out)
    assert said[:2] == [
        "each shared prompt once (shared_prompt: exact for this model)",
        "padded rows (padded: asked for by name)",
    ]
    assert re.fullmatch(r"padded rows, sorted by length \(sorted: not shared_prompt: dropout 0.1 is on, .*\)", said[2])
    assert re.fullmatch(
        r"padded rows \(padded: not shared_prompt: .*; not sorted: kto keeps its micro-batches, .*\)", said[3]
    )


def test_a_layout_that_is_impossible_is_refused_with_the_reason(tmp_path: Path):
    with pytest.raises(ValueError, match="layout: expected 'auto' or 'shared_prompt' or 'sorted' or 'padded', got 'p'"):
        tiny_config(tmp_path, layout="p")
    with pytest.raises(
        ValueError, match=r"expected a model that is exact with 'shared_prompt', or 'auto': dropout 0.1"
    ):
        trained(
            tmp_path,
            layout="shared_prompt",
            clamp=False,
            disable_dropout=False,
            model=tiny_model(attention_dropout=0.1),
        )
    with pytest.raises(ValueError, match=r"expected 'auto', 'shared_prompt' or 'padded', got 'sorted': kto keeps its"):
        tiny_trainer(tmp_path, layout="sorted", objective="kto")  # before anything is written


def test_a_reference_of_another_architecture_must_be_exact_too(tmp_path: Path):
    settings = {"reference": "frozen", "reference_model": tiny_model(attention_dropout=0.1), "disable_dropout": False}
    trainer = trained(tmp_path, max_steps=1, **settings)
    assert trainer.layout.layout == "sorted"


def test_eager_attention_shares_prompts_only_if_asked(tmp_path: Path):
    chosen = [
        trained(tmp_path / asked, max_steps=1, layout=asked, model=tiny_model(attn_implementation="eager")).layout
        for asked in ("auto", "shared_prompt")
    ]
    assert [choice.layout for choice in chosen] == ["sorted", "shared_prompt"]
    assert chosen[0].why == "not shared_prompt: attn_implementation='eager' would compute all pairs of a row's tokens"


@pytest.mark.parametrize("layout", ["auto", "padded"])
def test_a_model_whose_tokens_see_later_ones_is_refused(tmp_path: Path, layout: str):
    config = BertConfig(
        vocab_size=100, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, eos_token_id=1
    )
    with pytest.raises(ValueError, match="expected one whose tokens see no later ones, got BertLMHeadModel"):
        trained(tmp_path, model=BertLMHeadModel(config), layout=layout)
    config.is_decoder = True
    trained(tmp_path, model=BertLMHeadModel(config), layout=layout, overwrite_output_dir=True)
