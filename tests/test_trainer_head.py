"""The trainer with the head inside the loss (the default) equals the trainer on logits, except for rounding."""

import math
import re
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import TrainerCallback

from humanline_fused.model.recorder import LogitsRecorder
from humanline_fused.training import HumanlineTrainer
from humanline_fused.training.data.batch import Batch
from humanline_fused.training.scoring import Scorer
from tests.tiny_model import losses, records, tiny_model, tiny_trainer, trained

# Plain gradient descent, because Adam would scale a gradient of pure rounding error up to a full update.
DESCENT: dict[str, Any] = {"optim": "sgd", "learning_rate": 0.1}
CLOCK = re.compile(r"time/|.*(runtime|per_second)$")
# Both sum the same products, perhaps in another order: float32 roundings of a metric, a sum of at most six log-probs of
# a few nats each ...
ROUNDING = 16 * torch.finfo(torch.float32).eps
# ... and of a step's gradient, of norm 1 at most (max_grad_norm).
DRIFT_OF_STEP = DESCENT["learning_rate"] * ROUNDING


def numbers(trainer: HumanlineTrainer) -> torch.Tensor:
    """Return all numbers of the log that do not depend on the clock."""
    lines = trainer.state.log_history
    return torch.tensor([v for line in lines for k, v in sorted(line.items()) if not CLOCK.match(k)])


def weights(trainer: HumanlineTrainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters() if p.requires_grad])


def check_that_they_agree(fused: HumanlineTrainer, logits: HumanlineTrainer) -> None:
    assert (fused.args.head, logits.args.head) == ("fused", "logits")
    torch.testing.assert_close(numbers(fused), numbers(logits), rtol=ROUNDING, atol=ROUNDING)
    torch.testing.assert_close(weights(fused), weights(logits), rtol=0, atol=fused.state.global_step * DRIFT_OF_STEP)
    assert len(set(losses(fused))) == fused.state.global_step


@pytest.mark.parametrize(
    ("objective", "reference"), [("dpo", "lookahead"), ("kto", "lookahead"), ("kto", "copy"), ("grpo", "frozen")]
)
def test_losses_metrics_evaluations_and_weights_are_those_of_the_logits(tmp_path: Path, objective: str, reference: str):
    settings: dict[str, Any] = {
        "objective": objective,
        "reference": reference,
        "sync_every": None if reference == "frozen" else 2,
        "max_steps": 4,
        **DESCENT,
    }
    settings |= {"eval_dataset": records(objective, 8, seed=5), "eval_strategy": "steps", "eval_steps": 2}
    runs = [trained(tmp_path / head, **settings, **given) for head, given in HEADS.items()]
    check_that_they_agree(*runs)


HEADS: dict[str, dict[str, Any]] = {"fused": {}, "logits": {"head": "logits"}}


def adapted() -> Any:
    torch.manual_seed(1)
    return peft.get_peft_model(tiny_model(), peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["v_proj"]))


def test_lora_on_the_body_trains_as_on_logits(tmp_path: Path):
    settings = DESCENT | {"max_steps": 3}
    fused, logits = (trained(tmp_path / head, model=adapted(), **settings, **given) for head, given in HEADS.items())
    check_that_they_agree(fused, logits)
    copied = trained(tmp_path / "copied", model=adapted(), reference="copy", **settings)
    assert losses(copied) == losses(fused)
    assert torch.equal(weights(copied), weights(fused))


def test_under_mixed_precision_the_first_step_compares_the_policy_with_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    outputs: list[Any] = []
    compute = Scorer.loss

    def recorded(scorer: Scorer, model: torch.nn.Module, batch: Batch) -> Any:
        given = compute(scorer, model, batch)
        outputs.append(given[1])
        return given

    monkeypatch.setattr(Scorer, "loss", recorded)
    for reference in ("lookahead", "copy"):
        trained(tmp_path / reference, reference=reference, bf16=True, max_steps=2)
    for out in outputs[::2]:
        assert torch.equal(out.logp, out.ref_logp)
    assert torch.equal(outputs[1].logp, outputs[3].logp)
    assert not torch.equal(outputs[1].logp, outputs[1].ref_logp)
    exact = trained(tmp_path / "exact", max_steps=1)
    assert outputs[0].logp.dtype == torch.float32
    assert losses(exact) == [pytest.approx(math.log(2), rel=torch.finfo(torch.float32).eps)]


class Products(TrainerCallback):
    """Records the types that the model's head returned."""

    def __init__(self) -> None:
        self.seen: list[type] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        kwargs["model"].lm_head.register_forward_hook(lambda *call: self.seen.append(type(call[2])))


@pytest.mark.parametrize("layout", ["padded", "shared_prompt"])
def test_only_the_probes_compute_logits(tmp_path: Path, layout: str):
    products = Products()
    settings = {"objective": "kto", "layout": layout, "max_steps": 2, "eval_dataset": records("kto", 4, 5)}
    trained(tmp_path, callbacks=[products], **settings)
    first = products.seen.index(LogitsRecorder)
    noise, head, later = 4, 1, 2  # passes: two in training and two in evaluation mode; one; two with other last tokens
    assert first == noise + head + later if layout == "padded" else first < 8 + noise
    assert set(products.seen[:first]) == {torch.Tensor}
    assert set(products.seen[first:]) == {LogitsRecorder}


def test_an_adapter_on_the_head_is_refused_before_writing_unless_head_is_logits(tmp_path: Path):
    config = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "lm_head"])
    with pytest.raises(ValueError, match=r"adapter on the head.*head='logits' \(--head logits\)"):
        tiny_trainer(tmp_path / "run", model=peft.get_peft_model(tiny_model(), config))
    assert not (tmp_path / "run").exists()
    model = peft.get_peft_model(tiny_model(), config)
    assert len(losses(trained(tmp_path / "run", model=model, head="logits", max_steps=2))) == 2
