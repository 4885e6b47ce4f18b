"""TRL's losses on log-ratios: by hand with the clamp, and TRL's own without."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.kto_config import KTOConfig
from trl.trainer.kto_trainer import KTOTrainer
from trl.trainer.utils import FusedCausalLMOutput

from humanline_fused.integrations.trl import Humanline
from humanline_fused.integrations.trl.refused import DPO_LOSSES, KTO_LOSSES, refuse_arguments
from tests.error_budget import assert_within_budget
from tests.tiny_model import tiny_model
from tests.tiny_trl import exact_pass, ours

UNCLAMPED = Humanline(float("-inf"), float("inf"), sync_every=1000)
SMOOTHED = {"exo_pair": 0.1, "robust": 0.1, "aot_unpaired": 0.1}


# By hand


def given(*log_probs: list[float]) -> Callable[..., Any]:
    """Return a model of these log-probs, [B, T - 1]."""
    logp = torch.tensor(log_probs)
    zeros = torch.zeros_like(logp)
    output = FusedCausalLMOutput(entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())
    return lambda **inputs: FusedCausalLMOutput(**{**output, "log_probs": logp.clone()})


@pytest.fixture(scope="module")
def by_hand(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a DPO trainer with bounds of ±0.5 and β = 0.5, whose reference gives log-probs of −2."""
    trainer = ours("dpo", tmp_path_factory.mktemp("run"), humanline=Humanline(-0.5, 0.5, head="trl"))
    trainer.reference.model = given([-2.0, -2.0], [-2.0, 0.0])
    return trainer


CHOSEN, REJECTED = 0.25, -0.5  # 0.5 (clamped) - 0.25, and the lower bound
BY_HAND = {
    "sigmoid": math.log1p(math.exp(-0.375)),
    "hinge": 1 - 0.375,
    "ipo": (0.125 - -0.5 - 1) ** 2,  # of the means over two tokens and one
    "bco_pair": math.log1p(math.exp(-0.125)) + math.log1p(math.exp(-0.25)),
    "sppo_hard": (CHOSEN - 1) ** 2 + (REJECTED + 1) ** 2,
    "apo_zero": 1 - 1 / (1 + math.exp(-0.125)) + 1 / (1 + math.exp(0.25)),
    "sigmoid_norm": math.log1p(math.exp(-0.5 * 0.625)),
}


def loss_by_hand(trainer: Any, losses: list[str], weights: list[float]) -> float:
    trainer.loss_types, trainer.loss_weights = losses, weights
    inputs = {
        "input_ids": torch.tensor([[5, 6, 7], [5, 8, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]]),
        "completion_mask": torch.tensor([[0, 1, 1], [0, 1, 0]]),
    }
    policy = given([-1.0, -2.25], [-9.0, 0.0])
    return trainer._compute_loss(policy, inputs, False).item()


@pytest.mark.parametrize("loss", BY_HAND)
def test_a_loss_gets_the_sums_of_clamped_log_ratios(by_hand: Any, loss: str):
    assert loss_by_hand(by_hand, [loss], [1.0]) == pytest.approx(BY_HAND[loss], rel=1e-6)


def test_a_list_of_losses_is_their_weighted_sum(by_hand: Any):
    expected = 0.5 * BY_HAND["hinge"] + 2 * BY_HAND["ipo"]
    assert loss_by_hand(by_hand, ["hinge", "ipo"], [0.5, 2.0]) == pytest.approx(expected, rel=1e-6)


# TRL's own


def trainer_with_log_ratios(objective: str, folder: Path, **settings: Any) -> Any:
    """Return a trainer whose policy has left the reference."""
    trainer = ours(objective, folder, humanline=UNCLAMPED, **settings)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return trainer


def graded(compute: Callable[[], Any], model: Any) -> dict[str, torch.Tensor]:
    """Return the loss and the gradients by name."""
    model.zero_grad()
    loss = compute()
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {"loss": loss.detach()} | gradients


def assert_trls_own(trainer: Any, parent: Any, inputs: Any) -> None:
    """Compare with TRL's own method on TRL's own forward pass, and with the same method in float64."""
    reference = trainer.ref_model
    models = [tiny_model().double() for _ in range(2)]
    for model, of in zip(models, (trainer.model, reference), strict=True):
        model.load_state_dict(of.state_dict())
    actual = graded(lambda: trainer._compute_loss(trainer.model, inputs, False), trainer.model)
    plain = graded(lambda: parent._compute_loss(trainer, trainer.model, inputs, False), trainer.model)
    trainer.ref_model = exact_pass(models[1])
    try:
        oracle = graded(lambda: parent._compute_loss(trainer, exact_pass(models[0]), inputs, False), models[0])
    finally:
        trainer.ref_model = reference
    log_probs = 2 * sum(abs(trainer._metrics["train"][f"logps/{side}"][-1]) for side in ("chosen", "rejected"))
    assert actual.keys() == oracle.keys() == plain.keys()
    for name, expected in oracle.items():
        assert_within_budget(actual[name], plain[name], expected, name, log_probs=log_probs)


@pytest.fixture(scope="module")
def dpo(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return trainer_with_log_ratios("dpo", tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def pairs(dpo: Any) -> Any:
    dpo.model.train()
    return dpo._prepare_inputs(next(iter(dpo.get_train_dataloader())))


@pytest.mark.parametrize("loss", DPO_LOSSES)
def test_without_a_bound_loss_and_gradients_are_trls(dpo: Any, pairs: Any, loss: str):
    dpo.loss_types, dpo.loss_weights, dpo.label_smoothing = [loss], [1.0], SMOOTHED.get(loss, 0.0)
    assert_trls_own(dpo, DPOTrainer, pairs)


@pytest.mark.parametrize("loss", KTO_LOSSES)
def test_without_a_bound_loss_and_gradients_of_kto_are_trls(loss: str, tmp_path: Path):
    trainer = trainer_with_log_ratios("kto", tmp_path, loss_type=loss)
    trainer.model.train()
    assert_trls_own(trainer, KTOTrainer, trainer._prepare_inputs(next(iter(trainer.get_train_dataloader()))))


def test_trls_losses_on_log_ratios_are_accepted_alone_and_in_lists(tmp_path: Path):
    for loss in DPO_LOSSES:
        refuse_arguments(DPOConfig(str(tmp_path), loss_type=[loss], use_cpu=True), DPO_LOSSES)
    refuse_arguments(DPOConfig(str(tmp_path), loss_type=[*DPO_LOSSES], use_cpu=True), DPO_LOSSES)
    for loss in KTO_LOSSES:
        refuse_arguments(KTOConfig(str(tmp_path), loss_type=loss, use_cpu=True), KTO_LOSSES)
