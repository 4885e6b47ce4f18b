"""The cases: one operation each, on logits or on hidden states.

The same answer means: the value (``logp`` or the loss) and its gradients within a few roundings of the float64 answer
(the limits in ``compare.py``). A case's floor is the work that no implementation can do without: bytes on logits,
counted in passes over [N, V]; flops on hidden states, counted in products of 2·n·H·V for the n rows that count.
"""

import math
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from benchmarks.batches import Targets
from benchmarks.objectives import OBJECTIVES, Objective
from humanline_fused import HumanlineClamp
from humanline_fused.scores import Scores

LOG_EPSILON = 1.5
SOFTCAP = 30.0  # of Gemma's final logits
Mode = Literal["nograd", "frozen", "full"]
"""The value alone under ``torch.no_grad()``; forward and backward with a head that is not trained; or with all."""

MODES: tuple[Mode, ...] = ("nograd", "frozen", "full")


Passes = tuple[int, int]
"""Over [N, V]: reads of the rows that count, and writes of every row (dlogits is written whole)."""


@dataclass(frozen=True)
class Case:
    """One operation, on logits or on hidden states.

    On hidden states a log-prob without a gradient takes one product, a frozen head two, a trained head three (four
    where the gradient arrives at the log-probs: nothing is known of it while the logits are there). A reference scored
    inside takes one more.
    """

    name: str
    objective: Objective | None = None  # whose loss; None: log-probs, with the advantages as their gradient
    log_epsilon: float = LOG_EPSILON  # humanline's bounds are ± this
    _: KW_ONLY
    passes: dict[Mode, Passes] = field(default_factory=dict)  # the floor on logits
    products: dict[Mode, int] = field(default_factory=dict)  # the floor on hidden states
    softcap: float | None = None
    inplace_gradient: bool = False
    one_launch: bool = False
    given: bool = False  # the reference's log-probs are given, and cost nothing
    peaked: bool = False  # on HeadBatch.peaked
    mean: bool = False  # of the negative log-probs, which is the cross-entropy; else, without an objective, each

    @property
    def modes(self) -> tuple[Mode, ...]:
        """Those that are worth a comparison."""
        return tuple(self.passes or self.products)

    @property
    def on_hidden_states(self) -> bool:
        return bool(self.products)

    @property
    def has_reference(self) -> bool:
        return self.objective is not None

    @property
    def by_default(self) -> "Case":
        """The same operation without the options that a caller opts into."""
        return replace(self, inplace_gradient=False, one_launch=False)

    def floor(self, mode: Mode, batch: Any) -> dict[str, int]:
        """``floor_bytes`` or ``floor_flops`` of a row."""
        if self.products:
            return {"floor_flops": self.products[mode] * 2 * batch.counted * batch.weight.numel()}
        reads, writes = self.passes[mode]
        rows = reads * batch.counted + writes * batch.loss_mask.numel()
        return {"floor_bytes": rows * batch.logits.shape[-1] * batch.logits.itemsize}

    def loss(self, policy: Scores, reference: Scores, batch: Targets, **options: Any) -> Tensor:
        """The objective's, as ours computes it."""
        assert self.objective is not None
        taken = (getattr(batch, name) for name in self.objective.takes)
        options |= {"clamp": HumanlineClamp(-self.log_epsilon, self.log_epsilon), **self.objective.settings}
        return self.objective.loss(policy, reference, batch.target_ids, batch.loss_mask, *taken, **options).loss

    def of_log_probs(self, logp: Tensor, batch: Targets) -> Tensor:
        """The value without a reference, of log-probs [B, T] that are 0 where they do not count."""
        return -logp.sum() / batch.loss_mask.sum() if self.mean else logp

    def upstream(self, value: Tensor, batch: Targets) -> Tensor:
        """The gradient that arrives at the value: 1 at a loss or a mean, each sequence's advantage at its log-probs."""
        if self.objective or self.mean:
            return torch.ones_like(value)
        return batch.advantages[:, None].expand(value.shape).to(value.dtype)

    def inputs(self, batch: Any) -> Any:
        """The batch as this case takes it, before anything is compared."""
        return batch.peaked() if self.peaked else batch

    def writable(self, batch: Any) -> tuple[Any, Callable[[], object]]:
        """The inputs that a call may write over, and a function that restores them before each call."""
        if not self.inplace_gradient:
            return batch, lambda: None
        inputs = replace(batch, logits=batch.logits.clone())
        return inputs, partial(inputs.logits.copy_, batch.logits)

    def leaves(self, mode: Mode, batch: Any) -> tuple[Any, tuple[Tensor, ...]]:
        """The batch with a graph, and its tensors whose gradients are asked for."""
        trained = batch.scores[: 1 if mode == "frozen" else None]
        tensors = {name: getattr(batch, name).detach() for name in trained}
        for tensor in tensors.values():
            tensor.requires_grad_()
        if self.inplace_gradient:  # a gradient may be written over a model's output, never over a leaf or its view
            tensors = {name: _ModelOutput.apply(tensor) for name, tensor in tensors.items()}
        return replace(batch, **tensors), tuple(tensors.values())


class _ModelOutput(torch.autograd.Function):
    """The same memory as a model's output; a copy of it would be timed."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        return logits.data

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Tensor:
        return grad_outputs[0]


def _head_case(name: str, *modes: Mode, given: bool = False, **options: Any) -> Case:
    """``name`` is an objective's, with a suffix or without."""
    products: dict[Mode, int] = {"nograd": 1, "frozen": 2, "full": 3}
    products = {mode: products[mode] + (not given) for mode in modes or ("frozen", "full")}
    return Case(f"head_{name}", OBJECTIVES[name.split("_")[0]], products=products, given=given, **options)


def _by_name(*cases: Case) -> dict[str, Case]:
    return {case.name: case for case in cases}


POLICY: dict[Mode, Passes] = {"nograd": (1, 0), "full": (2, 1)}
BOTH_MODELS: dict[Mode, Passes] = {"nograd": (2, 0), "full": (3, 1)}
DPO, GRPO = OBJECTIVES["dpo"], OBJECTIVES["grpo"]

LOGITS_CASES = _by_name(
    Case("logp", passes=POLICY),
    Case("logp_softcap", passes=POLICY, softcap=SOFTCAP),
    *(Case(name, objective, passes=BOTH_MODELS) for name, objective in OBJECTIVES.items()),
    Case("dpo_inplace", DPO, passes={"full": (3, 1)}, inplace_gradient=True),
    Case("grpo_one_launch", GRPO, passes={"full": (2, 1)}, one_launch=True),
    Case("grpo_unclamped", GRPO, math.inf, passes=BOTH_MODELS),
)

HEAD_CASES = _by_name(
    Case("head_logp", products={"nograd": 1, "frozen": 2, "full": 4}),
    Case("head_cross_entropy", products={"nograd": 1, "frozen": 2, "full": 3}, mean=True),
    _head_case("dpo", *MODES),
    _head_case("dpo_given", *MODES, given=True),
    *(_head_case(f"{name}{given}", given=bool(given)) for name in ("kto", "grpo") for given in ("", "_given")),
    _head_case("dpo_unclamped", log_epsilon=math.inf),
    _head_case("grpo_unclamped", log_epsilon=math.inf, given=True),
    _head_case("dpo_peaked", given=True, peaked=True),
)

CASES = {**LOGITS_CASES, **HEAD_CASES}
