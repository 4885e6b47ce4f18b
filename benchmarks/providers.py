"""Who computes a case: ours and the peers, each told by whose code it runs."""

import importlib.util
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks import peers
from benchmarks.cases import CASES, Batch, Case, Mode
from humanline_fused import HumanlineClamp, Logits, __version__, dpo_loss, grpo_loss, kto_loss, token_logp
from humanline_fused.types import Impl

Answer = tuple[Tensor, Tensor | None]
"""The value ([] for a loss, [B, T] for ``logp``) and dlogits [B, T, V]; without the latter in mode ``nograd``."""

Value = Callable[[Case, Tensor, Batch], Tensor]
"""The differentiable value of a case at these logits [B, T, V]."""

EVERY_CASE = frozenset(CASES)
OPT_IN = frozenset(name for name, case in CASES.items() if case != case.by_default)


@dataclass(frozen=True)
class Provider:
    """One who computes; in bfloat16, float16 and float32, all that a case comes in.

    Attributes:
        key: what ``--providers`` calls it; the forms of one provider share it.
        name: what the tables call it.
        source: whose code runs: file and version.
        cases: names of the cases that it can answer.
        obstacle: why it cannot run on this device, or None.
        timed: False where only its answers mean something, as under Triton's interpreter.
    """

    key: str
    name: str
    source: str
    value: Value
    cases: frozenset[str]
    obstacle: Callable[[torch.device], str | None]
    timed: bool = True

    def answer(self, case: Case, mode: Mode, batch: Batch) -> Answer:
        if mode == "nograd":
            with torch.no_grad():
                return self.value(case, batch.logits, batch), None
        logits = batch.logits.detach().requires_grad_()
        if case.inplace_gradient:
            logits = _ModelOutput.apply(logits)  # a gradient may be written over one, never over a leaf or its view
        value = self.value(case, logits, batch)
        (dlogits,) = torch.autograd.grad(value, logits, upstream(case, value, batch))
        return value.detach(), dlogits


class _ModelOutput(torch.autograd.Function):
    """The same memory as what a model would have computed; a copy of it would be timed."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        return logits.data

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Tensor:
        return grad_outputs[0]


def upstream(case: Case, value: Tensor, batch: Batch) -> Tensor:
    """The gradient that arrives at the value: 1 at a loss, each sequence's advantage at its log-probs."""
    if case.operation == "logp":
        return batch.advantages[:, None].expand(value.shape).to(value.dtype)
    return torch.ones_like(value)


def ours(case: Case, logits: Tensor, batch: Batch, impl: Impl = "auto") -> Tensor:
    policy = Logits(logits, softcap=case.softcap, inplace_gradient=case.inplace_gradient)
    reference = Logits(batch.ref_logits, softcap=case.softcap)
    ids, mask = batch.target_ids, batch.loss_mask
    clamp = HumanlineClamp(-case.log_epsilon, case.log_epsilon)
    settings: dict[str, Any] = {"clamp": clamp, "impl": impl, **case.settings}
    match case.operation:
        case "logp":
            return token_logp(policy, ids, mask, impl=impl)
        case "dpo":
            return dpo_loss(policy, reference, ids, mask, **settings).loss
        case "kto":
            return kto_loss(policy, reference, ids, mask, batch.desirable, **settings).loss
        case "grpo":
            settings["one_launch"] = case.one_launch
            return grpo_loss(policy, reference, ids, mask, batch.advantages, **settings).loss
    raise KeyError(case.operation)


def ours_by_default(case: Case, logits: Tensor, batch: Batch, impl: Impl = "auto") -> Tensor:
    return ours(case.by_default, logits, batch, impl)


def _anywhere(device: torch.device) -> None:
    return None


def _interpreter(device: torch.device) -> str | None:
    if device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1" and importlib.util.find_spec("triton"):
        return None
    return "Triton's interpreter checks answers on a CPU, under TRITON_INTERPRET=1"


OURS, DEFAULT, HALOS, TRL = (
    "humanline_fused",
    "humanline_fused, by default",
    "eager, as HALOs",
    f"TRL {peers.TRL_VERSION}",
)
OUR_SOURCE = f"humanline_fused {__version__}"
WITHOUT_SOFTCAP = EVERY_CASE - {"logp_softcap"}

PROVIDERS = (
    Provider("halos", HALOS, peers.HALOS, peers.halos, EVERY_CASE, _anywhere),
    Provider(
        "compile",
        "torch.compile of it",
        f"torch {torch.__version__}",
        peers.compiled_halos,
        EVERY_CASE - OPT_IN,
        peers.compile_obstacle,
    ),
    Provider("trl", TRL, peers.TRL, peers.trl, WITHOUT_SOFTCAP, peers.trl_obstacle),
    Provider(
        "liger",
        f"Liger {peers.LIGER_VERSION}",
        peers.LIGER,
        peers.liger,
        frozenset({"grpo_unclamped"}),
        peers.liger_obstacle,
    ),
    Provider("ours", OURS, OUR_SOURCE, ours, EVERY_CASE, _anywhere),
    Provider("ours", DEFAULT, OUR_SOURCE, ours_by_default, OPT_IN, _anywhere),
    Provider(
        "trl",
        f"{TRL} (interpreter)",
        peers.TRL,
        partial(peers.trl, kernels=True),
        WITHOUT_SOFTCAP - OPT_IN,
        lambda device: _interpreter(device) or peers.trl_obstacle(device),
        timed=False,
    ),
    Provider(
        "liger",
        f"Liger {peers.LIGER_VERSION} (interpreter)",
        peers.LIGER,
        peers.liger,
        frozenset({"grpo_unclamped"}),
        lambda device: _interpreter(device) or peers.installed_obstacle("liger-kernel", peers.LIGER_VERSION),
        timed=False,
    ),
    Provider(
        "ours",
        f"{OURS} (interpreter)",
        OUR_SOURCE,
        partial(ours, impl="triton"),
        EVERY_CASE,
        _interpreter,
        timed=False,
    ),
)

KEYS = tuple(dict.fromkeys(provider.key for provider in PROVIDERS))


def available(keys: Sequence[str], device: torch.device) -> tuple[list[Provider], list[str]]:
    """The providers of these keys that can run on the device, and a line on each that cannot."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    chosen = [provider for provider in PROVIDERS if provider.key in keys and (provider.timed or interpreted)]
    obstacles = [(provider, provider.obstacle(device)) for provider in chosen]
    return (
        [provider for provider, obstacle in obstacles if obstacle is None],
        [f"Left out: {provider.name}: {obstacle}" for provider, obstacle in obstacles if obstacle],
    )


def sources(providers: Sequence[Provider]) -> dict[str, str]:
    """Whose code the figures are of, for the head of their file."""
    return {provider.name: provider.source for provider in providers}
