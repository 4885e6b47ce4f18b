"""Settings of one training of a tiny policy, and those of a set of trainings."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from humanline_fused.tiny.policies import Parameters, Policies
from humanline_fused.validation.values import check_choice

Loss = Literal["dpo", "kto", "grpo"]


@dataclass(frozen=True)
class Setting:
    """Settings that may differ between policies that train at the same time.

    Attributes:
        name: label.
        learning_rate: of AdamW, after a warm-up over the first tenth of the steps.
        beta: β of DPO and KTO.
        epsilon: PPO's clip of GRPO; infinite: none.
        log_epsilon_P, log_epsilon_R: humanline's bounds, nats; infinite: none.
        gamma_P, gamma_R: of humanline sampling (β = 1), which rejects tokens at random in place of the clamp; 0 rejects
            none. The maxima are those of a policy's step.
        sync_every: k, optimizer steps between two syncs of the reference; None: it is never synced.
        follows_data: the reference is the policy that wrote the current samples, so log-ratios are importance ratios.
        resample_every: steps between two draws of samples from the policy: 1 is online; None: the initial policy writes
            all samples (offline).
        temperature: of sampling.
        source: index of the policy that writes offline samples: 0 the initial one, i the i-th of ``sources``.
        max_grad_norm: the gradient is scaled down to it.
    """

    name: str
    learning_rate: float = 1e-3
    beta: float = 0.1
    epsilon: float = 0.2
    log_epsilon_P: float = -float("inf")
    log_epsilon_R: float = float("inf")
    gamma_P: float = field(default=0.0, repr=False)  # added later: a setting's repr is part of the results' hashes
    gamma_R: float = field(default=0.0, repr=False)
    sync_every: int | None = None
    follows_data: bool = False
    resample_every: int | None = None
    temperature: float = 1.0
    source: int = 0
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        if self.follows_data and self.sync_every:
            raise ValueError(f"{self.name}: expected sync_every=None with follows_data, got {self.sync_every}")
        if self.samples_tokens and (self.log_epsilon_P, self.log_epsilon_R) != (-float("inf"), float("inf")):
            raise ValueError(f"{self.name}: expected infinite bounds with humanline sampling, got finite ones")
        for field_name in ("sync_every", "resample_every"):
            value = getattr(self, field_name)
            if value is not None and value < 1:
                raise ValueError(f"{self.name}: expected {field_name} >= 1 or None, got {value}")
        if not self.log_epsilon_P <= 0 <= self.log_epsilon_R:
            given = f"{self.log_epsilon_P} and {self.log_epsilon_R}"
            raise ValueError(f"{self.name}: expected log_epsilon_P <= 0 <= log_epsilon_R, got {given}")
        if not self.temperature > 0:
            raise ValueError(f"{self.name}: expected temperature > 0, got {self.temperature}")

    @property
    def samples_tokens(self) -> bool:
        """True with humanline sampling."""
        return bool(self.gamma_P or self.gamma_R)


Choose = Callable[[Policies, Parameters, Tensor, Tensor], Tensor]
"""Chooses prompts by the samples of the initial policies: takes the policies, initial parameters, prompts
[M, P, digits] and samples [M, P, G, T]; returns indices [M, kept]."""


@dataclass(frozen=True)
class Trainings:
    """Settings that all policies of a set share.

    Attributes:
        loss: the loss.
        policies: architecture and task.
        steps: optimizer steps.
        prompts: prompts of a step.
        samples: samples of a prompt.
        epochs: passes over the samples; those after the first repeat the samples of the first ``steps / epochs`` steps.
        noise: probability with which a reward is inverted.
        evaluate_every: steps between two evaluations on the held-out prompts.
        choose: chooses ``prompts`` of ``drawn`` prompts, by their samples.
        drawn: prompts that are drawn where ``choose`` is given.
    """

    loss: Loss
    policies: Policies = field(default_factory=Policies)
    steps: int = 200
    prompts: int = 16
    samples: int = 4
    epochs: int = 1
    noise: float = 0.0
    evaluate_every: int = 20
    choose: Choose | None = None
    drawn: int | None = None

    def __post_init__(self) -> None:
        check_choice("loss", self.loss, ("dpo", "kto", "grpo"))
        if not 1 <= self.epochs <= self.steps:
            raise ValueError(f"epochs: expected 1 to {self.steps}, one step each at least, got {self.epochs}")
        if not 0 <= self.noise <= 1:
            raise ValueError(f"noise: expected a probability, got {self.noise}")
        if (self.choose is None) != (self.drawn is None):
            raise ValueError(f"choose, drawn: expected both or neither, got {self.choose} and {self.drawn}")


@dataclass(frozen=True)
class Curves:
    """What trainings gave, by setting and seed.

    Attributes:
        settings, seeds: of the first two axes.
        steps: optimizer steps before each evaluation, E numbers.
        reward: expected held-out reward, [A, S, E].
        length: mean tokens of held-out samples, [A, S, E]; only of a task whose answers have an end.
        surplus: mean over a step's tokens of −log π_ref(y) − H(π_ref), nats, [A, S, steps]. Assumption 4.1 makes it 0.
        mean_ratio: mean of π_θ / π_ref over a step's tokens, [A, S, steps].
        logp, ref_logp: mean log-prob of a step's tokens under the policy and the reference, nats, [A, S, steps].
        unclamped: share of tokens within humanline's bounds, or kept by its sampling, mean over the steps, [A, S].
        grad_norm: before clipping, mean over the steps, [A, S].
        parameters: of the trained policies, A · S of them.
        sampling_seconds, training_seconds: CPU seconds of the process before each evaluation, [A, E]: for prompts,
            samples and rewards, and for the updates; divided by the policies that trained at once.
    """

    settings: Sequence[Setting]
    seeds: Sequence[int]
    steps: Sequence[int]
    reward: Tensor
    length: Tensor | None
    surplus: Tensor
    mean_ratio: Tensor
    logp: Tensor
    ref_logp: Tensor
    unclamped: Tensor
    grad_norm: Tensor
    parameters: Parameters
    sampling_seconds: Tensor
    training_seconds: Tensor

    @classmethod
    def joined(cls, parts: Sequence["Curves"]) -> "Curves":
        """Return the curves of several sets with the same seeds."""
        first = parts[0]
        joined = {
            name: torch.cat([getattr(part, name) for part in parts])
            for name in (
                *("reward", "surplus", "mean_ratio", "logp", "ref_logp", "unclamped", "grad_norm"),
                *("sampling_seconds", "training_seconds"),
            )
        }
        lengths = [part.length for part in parts if part.length is not None]
        return cls(
            settings=[setting for part in parts for setting in part.settings],
            seeds=first.seeds,
            steps=first.steps,
            length=torch.cat(lengths) if lengths else None,
            parameters={name: torch.cat([part.parameters[name] for part in parts]) for name in first.parameters},
            **joined,
        )
