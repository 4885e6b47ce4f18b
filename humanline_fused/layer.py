"""The interface that ``eager`` and ``autograd`` both implement, and the named results of its operations."""

from collections.abc import Callable
from typing import Generic, NamedTuple, Protocol, TypeVar, runtime_checkable

from torch import Tensor

from humanline_fused.softmax import Epilogue, Softmax
from humanline_fused.types import DPOLossType


class TokenLogps(NamedTuple):
    """Per token, [B, T], nats, 0 where the mask is False; [0] if not asked for.

    Attributes:
        logp: log-probs of the targets, with a graph.
        entropy: of each token's distribution, with a graph.
        ref_logp: log-probs of the targets under the reference, without a graph.
    """

    logp: Tensor
    entropy: Tensor
    ref_logp: Tensor


class SequenceLoss(NamedTuple):
    """Result of DPO's and KTO's loss; all but ``loss`` are detached.

    Attributes:
        loss: [], with a graph.
        rewards: β R(y) of each sequence, [B].
        clamped_low_fraction, clamped_high_fraction: shares of the tokens that count, [].
    """

    loss: Tensor
    rewards: Tensor
    clamped_low_fraction: Tensor
    clamped_high_fraction: Tensor


class GRPOLoss(NamedTuple):
    """Result of GRPO's loss, [] each; all but ``loss`` are detached. The fields are those of ``GRPOOutput``."""

    loss: Tensor
    kl: Tensor
    clip_low_fraction: Tensor
    clip_high_fraction: Tensor
    clamped_low_fraction: Tensor
    clamped_high_fraction: Tensor


Result = TypeVar("Result", SequenceLoss, GRPOLoss)


LossOfLogp = Callable[[Tensor, Tensor], Result]
"""The loss with a graph and its metrics, from log-probs under policy and reference, [B, T]."""


class ScoredLoss(NamedTuple, Generic[Result]):
    """The result of a loss, and the detached log-probs [B, T] that it was computed from."""

    result: Result
    logp: Tensor
    ref_logp: Tensor


class Layer(Epilogue, Protocol):
    """Computes log-probs and losses: the module ``eager`` or ``autograd``.

    Tensors are as in the public functions, validated. Log-probs are float32 (float64 for float64 input), and so are
    losses. ``cu_seqlens`` is None for padded input.
    """

    def token_logp(
        self,
        logits: Tensor,
        ref_logits: Tensor | None,
        target_ids: Tensor,
        loss_mask: Tensor,
        softmax: Softmax = ...,
        with_entropy: bool = ...,
        inplace_gradient: bool = ...,
    ) -> TokenLogps: ...

    def dpo_loss(
        self,
        logp: Tensor,
        ref_logp: Tensor,
        loss_mask: Tensor,
        cu_seqlens: Tensor | None,
        *,
        beta: float,
        label_smoothing: float,
        log_epsilon_P: float,
        log_epsilon_R: float,
        loss_type: DPOLossType = ...,
    ) -> SequenceLoss: ...

    def kto_loss(
        self,
        logp: Tensor,
        ref_logp: Tensor,
        loss_mask: Tensor,
        cu_seqlens: Tensor | None,
        desirable: Tensor,
        kl: Tensor,
        *,
        beta: float,
        desirable_weight: float,
        undesirable_weight: float,
        log_epsilon_P: float,
        log_epsilon_R: float,
    ) -> SequenceLoss: ...

    def grpo_loss(
        self,
        logp: Tensor,
        ref_logp: Tensor,
        loss_mask: Tensor,
        advantages: Tensor,
        num_items_in_batch: Tensor | None,
        *,
        epsilon: float,
        epsilon_high: float,
        beta: float,
        log_epsilon_P: float,
        log_epsilon_R: float,
    ) -> GRPOLoss: ...

    def loss_and_derivative(
        self, loss_of_logp: LossOfLogp[Result], logp: Tensor, ref_logp: Tensor
    ) -> tuple[Result, Tensor]:
        """The result of one of these losses, detached, and ∂loss/∂logp [B, T]."""
        ...


@runtime_checkable
class OneLaunch(Protocol):
    """A layer that can compute GRPO and its dlogits in one launch."""

    def num_programs(self, logits: Tensor) -> int:
        """Rows that the launch takes at once on the logits' device; 0 where two launches are faster."""
        ...

    def grpo_one_launch(
        self,
        logits: Tensor,
        ref_logits: Tensor | None,
        ref_logp: Tensor | None,
        target_ids: Tensor,
        loss_mask: Tensor,
        softmax: Softmax,
        advantages: Tensor,
        num_items_in_batch: Tensor | None,
        *,
        epsilon: float,
        epsilon_high: float,
        beta: float,
        log_epsilon_P: float,
        log_epsilon_R: float,
    ) -> ScoredLoss[GRPOLoss]: ...


@runtime_checkable
class OfLogits(Protocol):
    """A layer that can differentiate a loss of one model's logits as a whole, in fewer launches."""

    def logits_loss(
        self,
        logits: Tensor,
        loss_of_logp: LossOfLogp[Result],
        ref_logits: Tensor | None,
        ref_logp: Tensor | None,
        target_ids: Tensor,
        loss_mask: Tensor,
        softmax: Softmax,
        inplace_gradient: bool,
    ) -> ScoredLoss[Result]:
        """Args: ``ref_logp`` [B, T], contiguous, in the dtype of losses; None if ``ref_logits`` are there."""
        ...
