"""HumanlineTrainer with humanline sampling in place of the clamp (``perception="sampling"``)."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from humanline_fused.looking.show import show_run
from humanline_fused.training import PAIRS, HumanlineTrainer, Objective
from tests.ranks import SaveOnce
from tests.tiny_model import losses, records, tiny_config, tiny_trainer, trained

SAMPLING: dict[str, Any] = {"perception": "sampling", "learning_rate": 3e-2, "sync_every": 3}
"""With a learning rate so high that both models differ by far."""


def shares(trainer: HumanlineTrainer) -> list[float]:
    return [line["humanline/unclamped"] for line in trainer.state.log_history if "humanline/unclamped" in line]


def weights(trainer: HumanlineTrainer) -> torch.Tensor:
    assert trainer.model is not None
    return torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])


@pytest.mark.parametrize("objective", ["dpo", "kto", "grpo"])
def test_tokens_are_rejected_once_the_policy_has_left_the_reference(tmp_path: Path, objective: str):
    sampled = trained(tmp_path / "sampled", objective=objective, **SAMPLING)
    plain = trained(tmp_path / "plain", objective=objective, **SAMPLING | {"perception": "clamp", "clamp": False})
    assert shares(sampled)[0] == 1 > min(shares(sampled)) > 0
    # At step 0 both models are one, so step 1 has the same weights. GRPO adds its penalty in another order.
    rounding = 16 * torch.finfo(torch.float32).eps
    assert losses(sampled)[:2] == pytest.approx(losses(plain)[:2], rel=rounding)
    # Which step rejects the first token with a gradient depends on the last bits of the processor's products.
    assert losses(sampled)[2:] != pytest.approx(losses(plain)[2:], rel=rounding)


def test_a_user_defined_loss_loses_the_gradient_of_rejected_tokens(tmp_path: Path):
    class Reinforced(Objective):
        """Raises the log-ratio of chosen completions."""

        name, form = "reinforced", PAIRS

        def loss(self, tokens: Any, config: Any) -> Any:
            chosen = tokens.sums(tokens.log_ratio).chunk(2)[0]
            return -chosen.mean(), {}

    class Rejecting(Reinforced):
        seen: list[tuple[int, int]]

        def compute(self, inputs: Any, config: Any) -> Any:
            out = super().compute(inputs, config)
            if inputs.sampling is not None:
                policy = inputs.policy.hidden
                (gradient,) = torch.autograd.grad(out.loss, policy, retain_graph=True)
                chosen = int(inputs.cu_seqlens[len(inputs.cu_seqlens) // 2])  # the tokens of the first half
                moved = (gradient[0, :chosen] != 0).any(-1)
                self.seen.append((int(moved.sum()), chosen))
            return out

    objective = Rejecting()
    objective.seen = []
    config = tiny_config(tmp_path, **SAMPLING)
    given = tiny_trainer(tmp_path / "other")  # for its model and tokenizer
    trainer = HumanlineTrainer(
        given.model, config, records("dpo", 10), processing_class=given.processing_class, objective=objective
    )
    trainer.train()
    moved, counted = zip(*objective.seen, strict=True)  # pyright: ignore[reportAttributeAccessIssue]
    assert moved[0] == counted[0]
    assert all(m <= c for m, c in zip(moved, counted, strict=True))
    assert sum(moved) < sum(counted)


@pytest.mark.parametrize("objective", ["dpo", "grpo"])
def test_the_rejected_tokens_do_not_depend_on_how_a_step_is_cut(tmp_path: Path, objective: str):
    whole, cut = (
        trained(
            tmp_path / str(size),
            objective=objective,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=4 // size,
            # Adam would scale a gradient of pure rounding error up to a full update.
            **SAMPLING | {"optim": "sgd", "learning_rate": 0.1, "gamma_P": 20.0},
        )
        for size in (4, 1)
    )
    assert min(shares(whole)) < 1
    assert shares(cut) == pytest.approx(shares(whole), rel=4 * torch.finfo(torch.float32).eps)
    rounding = 64 * torch.finfo(torch.float32).eps  # float32 sums in another order
    assert losses(cut) == pytest.approx(losses(whole), rel=rounding, abs=rounding)


@pytest.mark.parametrize("reference", ["lookahead", "copy"])
def test_a_resumed_run_is_bitwise_the_uninterrupted_one(tmp_path: Path, reference: str):
    settings: dict[str, Any] = {**SAMPLING, "reference": reference}
    whole = trained(tmp_path / "run", callbacks=[SaveOnce(4)], **settings)
    resumed = tiny_trainer(tmp_path / "again", **settings)
    resumed.train(str(tmp_path / "run" / "checkpoint-4"))
    assert min(shares(whole)[4:]) < 1
    assert losses(resumed) == losses(whole)
    assert torch.equal(weights(resumed), weights(whole))


def test_look_ahead_and_copy_reject_the_same_tokens(tmp_path: Path):
    ahead, copied = (trained(tmp_path / name, reference=name, **SAMPLING) for name in ("lookahead", "copy"))
    assert losses(ahead) == losses(copied)
    assert torch.equal(weights(ahead), weights(copied))


def test_another_seed_rejects_other_tokens(tmp_path: Path):
    settings = SAMPLING | {"data_seed": 0, "max_steps": 4}
    first, second = (trained(tmp_path / str(seed), seed=seed, **settings) for seed in (1, 2))
    assert losses(first)[:2] == losses(second)[:2]
    assert losses(first)[3:] != losses(second)[3:]


class Forwards(TrainerCallback):
    """Counts the model's forward passes of each step."""

    def __init__(self) -> None:
        self.counts: list[int] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        model.register_forward_hook(lambda *_: self.counts.append(state.global_step))


@pytest.mark.parametrize(("perception", "forwards"), [("clamp", 2), ("sampling", 3)])
@pytest.mark.parametrize(
    ("objective", "layout", "mismatched"), [("dpo", "auto", 0), ("kto", "padded", 2), ("kto", "shared_prompt", 1)]
)
def test_only_sampling_takes_a_further_forward_pass(
    tmp_path: Path, perception, forwards, objective, layout, mismatched, capsys
):
    counter = Forwards()
    settings = {"perception": perception, "objective": objective, "gradient_accumulation_steps": 2, "max_steps": 3}
    settings["layout"] = layout
    trained(tmp_path, callbacks=[counter], num_examples=24, **settings)
    assert counter.counts.count(1) == 2 * (forwards + mismatched)
    assert f"forwards per micro-batch {forwards + mismatched};" in capsys.readouterr().out


def test_an_evaluation_has_the_plain_loss(tmp_path: Path):
    data = records("dpo", 6, seed=5)
    runs = {"sampled": SAMPLING, "plain": SAMPLING | {"perception": "clamp", "clamp": False}}
    found = []
    for name, settings in runs.items():
        trainer = trained(tmp_path / name, eval_dataset=data, **settings | {"max_steps": 1})
        found.append(trainer.evaluate())
    assert found[0]["eval_loss"] == found[1]["eval_loss"]
    assert found[0]["eval_humanline/unclamped"] == 1


def test_the_summary_and_the_page_of_tokens_name_the_distributions(tmp_path: Path, capsys):
    data = tmp_path / "pairs.jsonl"
    data.write_text("\n".join(map(json.dumps, records("dpo", 10))))
    given = {"train_dataset": str(data), "callbacks": [SaveOnce(1)], "max_steps": 2}
    trained(tmp_path / "run", gamma_P=0.7, **SAMPLING | given)
    phrase = "humanline sampling, B_P ~ Beta(0.7, 1), B_R ~ Beta(0.01, 1)"
    assert f"dpo: {phrase}, loss_type=sigmoid, beta=" in capsys.readouterr().out
    page = show_run(tmp_path / "run", step=1, dataset=str(data)).read_text()
    assert f"none: {phrase}; its draws are not shown" in page


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"perception": "sample"}, r"perception: expected 'clamp' or 'sampling', got 'sample'"),
        ({"perception": "sampling", "clamp": False}, r"clamp: expected True with perception='sampling', got False"),
        (
            {"perception": "sampling", "log_epsilon_P": -1.0},
            r"log_epsilon_P: expected -1\.5 with perception='sampling', got -1\.0",
        ),
        ({"gamma_P": 0.7}, r"gamma_P: expected 0\.5 with perception='clamp', got 0\.7"),
        ({"perception": "sampling", "gamma_R": -1.0}, r"gamma_R: expected a finite number >= 0, got -1\.0"),
        ({"perception": "sampling", "beta_P": 0.0}, r"beta_P: expected a finite number > 0, got 0\.0"),
    ],
)
def test_settings_that_contradict_the_perception_are_refused(tmp_path: Path, settings: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=f"^{message}$"):
        tiny_config(tmp_path, **settings)
