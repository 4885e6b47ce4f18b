"""Comparison of a loss and its gradient with the oracle, eager in float64, within the error budget."""

import torch

from humanline_fused import TokenLogp
from tests.error_budget import assert_within_budget
from tests.inputs import SETTINGS, Batch, loss_and_gradient, loss_of


def assert_matches_oracle(objective: str, batch: Batch, **kwargs) -> None:
    actual, gradient = loss_and_gradient(objective, batch, impl="triton", **kwargs)
    eager, eager_gradient = loss_and_gradient(objective, batch, impl="eager", **kwargs)
    oracle, oracle_gradient = loss_and_gradient(objective, batch.to(torch.float64), impl="eager", **kwargs)
    log_probs = (oracle["logp"].abs() + oracle["ref_logp"].abs()).where(batch.loss_mask, 0.0)
    per_token, per_sequence = log_probs.max().item(), log_probs.sum(-1).max().item()
    for name in oracle:
        size = 0.0 if name.endswith("logp") else per_token if objective == "grpo" else 2 * per_sequence
        assert_within_budget(actual[name], eager[name], oracle[name], name, log_probs=size)
    policy = oracle["logp"].requires_grad_()
    settings = {name: value for name, value in kwargs.items() if name not in ("one_launch", "lay_out", "temperature")}
    double = loss_of(objective, TokenLogp(policy), TokenLogp(oracle["ref_logp"]), batch.to(torch.float64), **settings)
    (dlogp,) = torch.autograd.grad(double.loss, policy)
    # dlogp is itself a difference (of k3's two terms, of two sigmoids) of values as large as beta.
    num_items = {"dpo": len(dlogp) // 2, "kto": len(dlogp), "grpo": batch.loss_mask.sum().item()}[objective]
    unit = max(dlogp.abs().max().item(), (SETTINGS[objective] | settings)["beta"] / max(num_items, 1))
    unit /= torch.as_tensor(kwargs.get("temperature", 1.0)).min().item()
    size = per_token if objective == "grpo" else 2 * per_sequence
    assert_within_budget(gradient, eager_gradient, oracle_gradient, "dlogits", log_probs=size, unit=unit)
