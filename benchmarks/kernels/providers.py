"""The implementations of a case: ours and the peers, each named with the source of its code."""

import importlib.util
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.kernels.cases import CASES, HEAD_CASES, LOGITS_CASES, Case, Mode
from benchmarks.peers import cute, halos, installed, liger, log_probs
from benchmarks.peers.installed import Obstacle
from humanline_fused import LMHead, Logits, TokenLogp, __version__, token_logp
from humanline_fused.types import Impl

Answer = tuple[Tensor, tuple[Tensor, ...]]
"""The value ([] for a loss, [B, T] for ``logp``) and its gradients, of :meth:`Case.leaves`; none in mode ``nograd``."""

EVERY_CASE, ON_LOGITS, ON_HIDDEN_STATES = frozenset(CASES), frozenset(LOGITS_CASES), frozenset(HEAD_CASES)
OPT_IN = frozenset(name for name, case in LOGITS_CASES.items() if case != case.by_default)
WITHOUT_SOFTCAP = ON_LOGITS - {"logp_softcap"}
UNCLAMPED, HEAD_UNCLAMPED = frozenset({"grpo_unclamped"}), frozenset({"head_dpo_unclamped", "head_grpo_unclamped"})
CROSS_ENTROPY = frozenset({"head_cross_entropy"})


@dataclass(frozen=True)
class Provider:
    """An implementation, in bfloat16, float16 and float32."""

    key: str  # for --providers; the forms of one provider share it
    name: str  # in the tables
    source: str  # whose code runs: file and version
    value: Callable[[Any, Any], Tensor]  # the differentiable value of a case on a batch of its kind
    obstacle: Obstacle
    cases: frozenset[str]  # names of those that it can answer
    timed: bool = True  # False where only its answers mean something, as under Triton's interpreter
    approximate: bool = False  # its source says what it leaves out; it is timed beside its error

    def answer(self, case: Case, mode: Mode, batch: Any) -> Answer:
        if mode == "nograd":
            with torch.no_grad():
                return self.value(case, batch), ()
        inputs, leaves = case.leaves(mode, batch)
        value = self.value(case, inputs)
        return value.detach(), torch.autograd.grad(value, leaves, case.upstream(value, batch))


def ours(case: Case, batch: Any, impl: Impl = "auto") -> Tensor:
    options: dict[str, Any] = {"impl": impl}
    if case.on_hidden_states:
        policy = LMHead(batch.hidden, batch.weight)
        reference = TokenLogp(batch.ref_logp) if case.given else LMHead(batch.ref_hidden, batch.ref_weight)
    else:
        policy = Logits(batch.logits, softcap=case.softcap, inplace_gradient=case.inplace_gradient)
        reference = Logits(batch.ref_logits, softcap=case.softcap)
    if not case.has_reference:
        return case.of_log_probs(token_logp(policy, batch.target_ids, batch.loss_mask, **options), batch)
    if case.one_launch:
        options["one_launch"] = True
    return case.loss(policy, reference, batch, **options)


def _none(device: torch.device) -> None:
    return None


def _interpreted(other: Obstacle) -> Obstacle:
    def obstacle(device: torch.device) -> str | None:
        here = device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1" and importlib.util.find_spec("triton")
        return other(device) if here else "Triton's interpreter checks answers on a CPU, under TRITON_INTERPRET=1"

    return obstacle


OURS, DEFAULT, HALOS = "humanline_fused", "humanline_fused, by default", "eager, as HALOs"
TRL, LIGER = f"TRL {installed.TRL_VERSION}", f"Liger {installed.LIGER_VERSION}"
CCE = f"cut-cross-entropy {installed.CCE_VERSION}"
TRL_CHUNKED, LIGER_LINEAR, CCE_UNFILTERED = f"{TRL}, chunked", f"{LIGER}, fused linear", f"{CCE}, unfiltered"
TORCH = "F.linear_cross_entropy"
QUACK_CHUNKED, QUACK_EPILOGUE = (f"QuACK {installed.QUACK_VERSION}, {form}" for form in ("chunked", "epilogue"))
LIGER_CUTE = f"{LIGER}, CuTe DSL"
INTERPRETER = "(interpreter)"
OUR_SOURCE = f"humanline_fused {__version__}"

COMPILED = f"torch {torch.__version__}", halos.compiled_halos, installed.compile_obstacle
OURS_BY_DEFAULT = OUR_SOURCE, lambda case, batch: ours(case.by_default, batch), _none
INTERPRETED = OUR_SOURCE, lambda case, batch: ours(case, batch, "triton"), _interpreted(_none)
TRL_EITHER = log_probs.TRL, log_probs.trl_on_logits, log_probs.trl_obstacle
TRL_KERNEL = log_probs.TRL, log_probs.trl_by_kernel, _interpreted(log_probs.trl_obstacle)
LIGER_KERNEL = *liger.ON_LOGITS, _interpreted(liger.ANYWHERE)

PROVIDERS = (
    Provider("halos", HALOS, halos.SOURCE, halos.halos, _none, EVERY_CASE),
    Provider("compile", "torch.compile of it", *COMPILED, ON_LOGITS - OPT_IN),
    Provider("trl", TRL, *TRL_EITHER, WITHOUT_SOFTCAP),
    Provider("liger", LIGER, *liger.ON_LOGITS, liger.ON_A_GPU, UNCLAMPED),
    Provider("trl", TRL_CHUNKED, *log_probs.TRL_CHUNKED, ON_HIDDEN_STATES),
    Provider("liger", LIGER_LINEAR, *liger.ON_HIDDEN_STATES, liger.WITH_TRITON, HEAD_UNCLAMPED),
    Provider("cce", CCE, *log_probs.CCE, ON_HIDDEN_STATES, approximate=True),
    Provider("cce", CCE_UNFILTERED, *log_probs.CCE_UNFILTERED, ON_HIDDEN_STATES, approximate=True),
    Provider("torch", TORCH, *log_probs.TORCH, ON_HIDDEN_STATES, approximate=True),
    Provider("quack", QUACK_CHUNKED, *cute.QUACK_CHUNKED, cute.QUACK_HERE, CROSS_ENTROPY, approximate=True),
    Provider("quack", QUACK_EPILOGUE, *cute.QUACK_EPILOGUE, cute.EPILOGUE_HERE, CROSS_ENTROPY, approximate=True),
    Provider("liger", LIGER_CUTE, *cute.LIGER_CUTE, cute.LIGER_HERE, CROSS_ENTROPY, approximate=True),
    Provider("ours", OURS, OUR_SOURCE, ours, _none, EVERY_CASE),
    Provider("ours", DEFAULT, *OURS_BY_DEFAULT, OPT_IN),
    Provider("trl", f"{TRL} {INTERPRETER}", *TRL_KERNEL, WITHOUT_SOFTCAP - OPT_IN, timed=False),
    Provider("liger", f"{LIGER} {INTERPRETER}", *LIGER_KERNEL, UNCLAMPED, timed=False),
    Provider("ours", f"{OURS} {INTERPRETER}", *INTERPRETED, EVERY_CASE, timed=False),
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


def announced(keys: Sequence[str], device: torch.device) -> list[Provider]:
    """The same providers, whose sources are printed, as are the obstacles of the others."""
    providers, obstacles = available(keys, device)
    print("\n".join([*(f"{name}: {source}" for name, source in sources(providers).items()), *obstacles]))
    return providers


def sources(providers: Sequence[Provider]) -> dict[str, str]:
    """The sources by name, for the head of a file."""
    return {provider.name: provider.source for provider in providers}
