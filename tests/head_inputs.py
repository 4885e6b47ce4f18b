"""Hidden states and heads for the tests, and every loss on them with every kind of scores."""

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import linear

from humanline_fused import LMHead, Logits, TokenLogp, token_logp
from humanline_fused.scores import Scores
from tests.inputs import Batch, loss_of

Kind = Literal["head", "logits", "logp"]


@dataclass(frozen=True)
class HeadBatch:
    """Hidden states [B, T, H] and heads of policy and reference, and the other inputs of a loss."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    ref_hidden: Tensor
    ref_weight: Tensor
    tokens: Batch
    cu_seqlens: Tensor | None = None

    def to(self, dtype: torch.dtype) -> "HeadBatch":
        names = ("hidden", "weight", "bias", "ref_hidden", "ref_weight")
        tensors = {name: getattr(self, name) for name in names}
        tensors = {name: None if t is None else t.detach().to(dtype) for name, t in tensors.items()}
        return replace(self, **tensors, tokens=self.tokens.to(dtype))

    @property
    def packed(self) -> "HeadBatch":
        """The same sequences concatenated in one row [1, N]."""
        B, T, _ = self.hidden.shape
        device = self.hidden.device
        flat = {name: getattr(self, name).flatten(0, 1)[None] for name in ("hidden", "ref_hidden")}
        of_tokens = {name: getattr(self.tokens, name).flatten()[None] for name in ("target_ids", "loss_mask")}
        bounds = torch.arange(0, B * T + 1, T, dtype=torch.int32, device=device)
        return replace(self, **flat, tokens=replace(self.tokens, **of_tokens), cu_seqlens=bounds)


def head_batch(
    device: torch.device | str, B: int = 4, T: int = 6, H: int = 16, V: int = 37, bias: bool = True, seed: int = 0
) -> HeadBatch:
    """Return heads with logits of scale 3, and a reference so near that both humanline bounds bind on some tokens."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    hidden, weight = normal(B, T, H), 3 * H**-0.5 * normal(V, H)
    tokens = Batch(
        logits=torch.empty(0, device=device),
        ref_logits=torch.empty(0, device=device),
        target_ids=torch.randint(0, V, (B, T), generator=generator).to(device),
        loss_mask=(torch.rand(B, T, generator=generator) < 0.7).to(device),
        desirable=(torch.arange(B) % 2 == 0).to(device),
        advantages=normal(B),
    )
    return HeadBatch(
        hidden=hidden,
        weight=weight,
        bias=normal(V) if bias else None,
        ref_hidden=hidden + 0.4 * normal(B, T, H),
        ref_weight=weight + 0.1 * normal(V, H),
        tokens=tokens,
    )


def source(
    kind: Kind, hidden: Tensor, weight: Tensor, bias: Tensor | None, tokens: Batch, impl: str, **options: Any
) -> Scores:
    """Return the same scores as one of three kinds; logits and log-probs ignore ``options`` that only a head has."""
    softmax = {name: value for name, value in options.items() if name in ("temperature", "softcap", "scale")}
    if kind == "head":
        return LMHead(hidden, weight, bias, **options)
    logits = Logits(linear(hidden, weight, bias), **softmax)
    if kind == "logits":
        return logits
    return TokenLogp(token_logp(logits, tokens.target_ids, tokens.loss_mask, impl=impl))  # pyright: ignore[reportArgumentType]


def answer(
    objective: str,
    batch: HeadBatch,
    policy: Kind,
    reference: Kind,
    *,
    impl: str = "eager",
    frozen: bool = False,
    shared: bool = False,
    grad_output: float = 1.0,
    options: dict[str, Any] | None = None,
    **settings: Any,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the results of a loss, and its gradients by the names of the policy's tensors.

    Args:
        frozen: weight and bias need no gradient.
        shared: the reference's hidden states go through the policy's own head.
    """
    options = options or {}
    leaves = {"hidden": batch.hidden, "weight": batch.weight, "bias": batch.bias}
    leaves = {name: tensor.detach().clone() for name, tensor in leaves.items() if tensor is not None}
    wanted = [name for name in leaves if name == "hidden" or not frozen]
    for name in wanted:
        leaves[name].requires_grad_()
    weight, bias = leaves["weight"], leaves.get("bias")
    ref_weight = weight if shared else batch.ref_weight
    policy_scores = source(policy, leaves["hidden"], weight, bias, batch.tokens, impl, **options)
    reference_scores = source(reference, batch.ref_hidden, ref_weight, bias, batch.tokens, impl, **options)
    if batch.cu_seqlens is not None:
        settings["cu_seqlens"] = batch.cu_seqlens
    out = loss_of(objective, policy_scores, reference_scores, batch.tokens, impl=impl, **settings)
    gradients = torch.autograd.grad(out.loss * grad_output, [leaves[name] for name in wanted])
    values = {name: getattr(out, name).detach() for name in out.__dataclass_fields__}
    return values, dict(zip(wanted, gradients, strict=True))
