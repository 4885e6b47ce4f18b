"""Forward passes of policy and reference on one batch: TRL's, or hidden states that meet the head only where needed."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from trl.trainer.utils import FusedCausalLMOutput

from humanline_fused.dispatch import layer_for, score
from humanline_fused.integrations.trl.body import Body
from humanline_fused.integrations.trl.logged_logits import LoggedLogits
from humanline_fused.scores import LMHead
from humanline_fused.tokens import Tokens


class ForwardPass(Protocol):
    """A forward pass on one batch, for any model."""

    def __call__(self, model: Any, *, log_probs_only: bool = False) -> FusedCausalLMOutput:
        """Return TRL's output; with ``log_probs_only`` the fields that only TRL's logs use may be None."""
        ...


def trl_pass(inputs: dict[str, Any]) -> ForwardPass:
    """Return TRL's own forward pass on the inputs that its loss gives a model."""

    def forward(model: Any, *, log_probs_only: bool = False) -> FusedCausalLMOutput:
        if log_probs_only:  # TRL's call of the reference
            return model(**{name: value for name, value in inputs.items() if name != "output_router_logits"})
        return model(**inputs)

    return forward


def head_pass(body_of: Callable[[dict[str, Any], Tensor], Body], inputs: dict[str, Any]) -> ForwardPass:
    """Return a forward pass for models that :func:`humanline_fused.model.fused_head.score_in_forward_` changed.

    The values are those of TRL's own pass up to rounding.

    Args:
        body_of: makes a body from the model's inputs and the targets.
        inputs: those that TRL's loss gives a model: ``labels`` [B, T], −100 where a token does not count,
            ``fused_lm_head``, and the model's own.
    """
    given = {name: value for name, value in inputs.items() if name not in ("labels", "fused_lm_head")}
    targets = inputs["labels"][:, 1:]
    into = (targets != -100).flatten().nonzero()[:, 0]
    body = body_of(given, into)

    def forward(model: Any, *, log_probs_only: bool = False) -> FusedCausalLMOutput:
        score = _Score(body.source, targets.flatten()[into], into, targets.shape, log_probs_only)
        with body.attention():
            return model(**body.inputs, score=score)

    return forward


class _Score(NamedTuple):
    """Scores hidden states inside the model's forward.

    Attributes:
        source, target_ids, into: [n], int64: of each target the index of its hidden state, its id, and its place in
            ``shape``.
        shape: [B, T - 1].
    """

    source: Tensor
    target_ids: Tensor
    into: Tensor
    shape: torch.Size
    log_probs_only: bool

    def __call__(self, head: LMHead) -> FusedCausalLMOutput:
        hidden, number = head.hidden.flatten(0, 1)[self.source][None], len(self.source)
        head = replace(head, hidden=hidden, rows=torch.arange(number))
        tokens = Tokens(self.target_ids[None], torch.ones(1, number, dtype=torch.bool))
        layer = layer_for("auto", head)
        if self.log_probs_only:
            return FusedCausalLMOutput(log_probs=self._placed(score(layer, head, tokens).logp[0]))
        logged: Any = LoggedLogits(layer, hidden)  # a head needs only the epilogue of a layer
        logp = self._placed(score(logged, head, tokens).logp[0])
        entropy, mean, is_top1 = map(self._placed, (logged.entropy, logged.mean, logged.is_top1))
        return FusedCausalLMOutput(log_probs=logp, entropy=entropy, mean_logits=mean, is_top1=is_top1)

    def _placed(self, values: Tensor) -> Tensor:
        """[B, T - 1] from the values of the targets, [n]; 0 elsewhere."""
        return values.new_zeros(self.shape.numel()).index_copy(0, self.into, values).view(self.shape)
