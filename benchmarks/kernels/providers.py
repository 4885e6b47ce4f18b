"""Who computes a case: ours and the peers, each told by whose code it runs."""

import importlib.util
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.kernels.cases import Case, Inputs, Mode
from benchmarks.kernels.head import HEAD_CASES, HeadCase
from benchmarks.kernels.logits import LOGITS_CASES, LogitsCase
from benchmarks.kernels.registry import CASES
from benchmarks.peers import cross_entropy as head
from benchmarks.peers import halos, installed
from benchmarks.peers import trl as logits
from humanline_fused import (
    HumanlineClamp,
    LMHead,
    Logits,
    TokenLogp,
    __version__,
    dpo_loss,
    grpo_loss,
    kto_loss,
    token_logp,
)
from humanline_fused.scores import Scores
from humanline_fused.types import Impl

Answer = tuple[Tensor, tuple[Tensor, ...]]
"""The value ([] for a loss, [B, T] for ``logp``) and its gradients, of :meth:`Case.leaves`; none in
mode ``nograd``."""

Value = Callable[[Any, Any], Tensor]
"""The differentiable value of a case on a batch of its kind."""

EVERY_CASE = frozenset(CASES)
ON_LOGITS, ON_HIDDEN_STATES = frozenset(LOGITS_CASES), frozenset(HEAD_CASES)
OPT_IN = frozenset(name for name, case in LOGITS_CASES.items() if case != case.by_default)


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
        approximate: its ``source`` says what it leaves out; it is timed beside its error.
    """

    key: str
    name: str
    source: str
    value: Value
    cases: frozenset[str]
    obstacle: Callable[[torch.device], str | None]
    timed: bool = True
    approximate: bool = False

    def answer(self, case: Case, mode: Mode, batch: Inputs) -> Answer:
        if mode == "nograd":
            with torch.no_grad():
                return self.value(case, batch), ()
        inputs, leaves = case.leaves(mode, batch)
        value = self.value(case, inputs)
        return value.detach(), torch.autograd.grad(value, leaves, upstream(case, value, batch))


def upstream(case: Case, value: Tensor, batch: Inputs) -> Tensor:
    """The gradient that arrives at the value: 1 at a loss, each sequence's advantage at its log-probs."""
    if case.operation == "logp":
        return batch.advantages[:, None].expand(value.shape).to(value.dtype)
    return torch.ones_like(value)


def _scores(case: Case, batch: Any) -> tuple[Scores, Scores]:
    """Policy and reference."""
    if isinstance(case, LogitsCase):
        policy = Logits(batch.logits, softcap=case.softcap, inplace_gradient=case.inplace_gradient)
        return policy, Logits(batch.ref_logits, softcap=case.softcap)
    assert isinstance(case, HeadCase)
    reference = TokenLogp(batch.ref_logp) if case.given else LMHead(batch.ref_hidden, batch.ref_weight)
    return LMHead(batch.hidden, batch.weight), reference


def ours(case: Case, batch: Inputs, impl: Impl = "auto") -> Tensor:
    policy, reference = _scores(case, batch)
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
            settings["one_launch"] = isinstance(case, LogitsCase) and case.one_launch
            return grpo_loss(policy, reference, ids, mask, batch.advantages, **settings).loss
    raise KeyError(case.operation)


def ours_by_default(case: LogitsCase, batch: Inputs) -> Tensor:
    return ours(case.by_default, batch)


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
    f"TRL {installed.TRL_VERSION}",
)
LIGER = f"Liger {installed.LIGER_VERSION}"
TRL_CHUNKED, LIGER_LINEAR = f"{TRL}, chunked", f"{LIGER}, fused linear"
CCE, CCE_UNFILTERED = (
    f"cut-cross-entropy {installed.CCE_VERSION}",
    f"cut-cross-entropy {installed.CCE_VERSION}, unfiltered",
)
TORCH = "F.linear_cross_entropy"
OUR_SOURCE = f"humanline_fused {__version__}"
WITHOUT_SOFTCAP = ON_LOGITS - {"logp_softcap"}
UNCLAMPED = frozenset({"grpo_unclamped"})
HEAD_UNCLAMPED = frozenset({"head_dpo_unclamped", "head_grpo_unclamped"})

PROVIDERS = (
    Provider("halos", HALOS, halos.HALOS, halos.halos, EVERY_CASE, _anywhere),
    Provider(
        "compile",
        "torch.compile of it",
        f"torch {torch.__version__}",
        halos.compiled_halos,
        ON_LOGITS - OPT_IN,
        installed.compile_obstacle,
    ),
    Provider("trl", TRL, logits.TRL, logits.trl, WITHOUT_SOFTCAP, logits.trl_obstacle),
    Provider("liger", LIGER, logits.LIGER, logits.liger, UNCLAMPED, logits.liger_obstacle),
    Provider("trl", TRL_CHUNKED, head.TRL, head.trl, ON_HIDDEN_STATES, head.trl_obstacle),
    Provider("liger", LIGER_LINEAR, head.LIGER, head.liger, HEAD_UNCLAMPED, head.liger_obstacle),
    Provider(
        "cce",
        CCE,
        head.CCE,
        partial(head.cut_cross_entropy, filter_eps="high"),
        ON_HIDDEN_STATES,
        head.cce_obstacle,
        approximate=True,
    ),
    Provider(
        "cce",
        CCE_UNFILTERED,
        head.CCE_UNFILTERED,
        partial(head.cut_cross_entropy, filter_eps=None),
        ON_HIDDEN_STATES,
        head.cce_obstacle,
        approximate=True,
    ),
    Provider(
        "torch",
        TORCH,
        head.TORCH,
        head.torch_linear_cross_entropy,
        ON_HIDDEN_STATES,
        head.torch_obstacle,
        approximate=True,
    ),
    Provider("ours", OURS, OUR_SOURCE, ours, EVERY_CASE, _anywhere),
    Provider("ours", DEFAULT, OUR_SOURCE, ours_by_default, OPT_IN, _anywhere),
    Provider(
        "trl",
        f"{TRL} (interpreter)",
        logits.TRL,
        partial(logits.trl, kernels=True),
        WITHOUT_SOFTCAP - OPT_IN,
        lambda device: _interpreter(device) or logits.trl_obstacle(device),
        timed=False,
    ),
    Provider(
        "liger",
        f"{LIGER} (interpreter)",
        logits.LIGER,
        logits.liger,
        UNCLAMPED,
        lambda device: _interpreter(device) or installed.installed_obstacle("liger-kernel", installed.LIGER_VERSION),
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
