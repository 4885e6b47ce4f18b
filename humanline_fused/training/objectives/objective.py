"""Base class of objectives: a loss with its data form, settings, metrics and display names."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from humanline_fused.eager.sequences import sequence_counts, sequence_sum
from humanline_fused.functional import token_log_ratio, token_logp
from humanline_fused.scores import Scores, TokenLogp
from humanline_fused.training.data.forms import Form
from humanline_fused.training.data.rows.records import DataType
from humanline_fused.training.objectives.metrics import Weighted, clamp_metrics, mean
from humanline_fused.training.objectives.rows import in_rows
from humanline_fused.training.objectives.settings import LossSettings
from humanline_fused.types import ClampedOutput, HumanlineSampling

Metric = Tensor | Weighted | float
"""A metric of a user-defined loss."""


@dataclass(frozen=True, eq=False)
class LossInputs:
    """The tokens of a micro-batch and their scores. In the trainer they are packed, and all of them count.

    Attributes:
        policy: ``Logits``, ``LMHead`` or ``TokenLogp``, with a graph.
        reference: log-probs of the reference, [1, n], nats; padded, [B, T].
        target_ids: [1, n]; padded, [B, T].
        loss_mask: [1, n], bool; padded, [B, T].
        columns: as of :class:`~humanline_fused.training.data.batch.Batch`.
        num_items: [], the divisor of a sum over tokens; None: the number of tokens that count in this micro-batch.
        kl: [], nats, detached: the mean log-ratio of the mismatched pairs, ≥ 0; None for an objective without them.
        sampling: humanline sampling in place of the clamp; None with the clamp and in evaluation.
        cu_seqlens: [S + 1], on the CPU: sequence s is the tokens from ``cu_seqlens[s]`` to ``cu_seqlens[s + 1]``. None
            for padded tokens, a sequence in each row.
    """

    policy: Scores
    reference: TokenLogp
    target_ids: Tensor
    loss_mask: Tensor
    columns: Mapping[str, Tensor]
    num_items: Tensor | None = None
    kl: Tensor | None = None
    sampling: HumanlineSampling | None = None
    cu_seqlens: Tensor | None = None

    def perceived(self, config: LossSettings) -> dict[str, Any]:
        """Return ``clamp`` or ``perception``, ``impl`` and ``cu_seqlens``: arguments of every loss of the package."""
        how = {"clamp": config.humanline_clamp} if self.sampling is None else {"perception": self.sampling}
        return {**how, "impl": config.impl, "cu_seqlens": self.cu_seqlens}

    def sums(self, values: Tensor) -> Tensor:
        """Return the sum over the tokens of each sequence, [S]."""
        return sequence_sum(values, self.cu_seqlens)

    @property
    def scored(self) -> tuple[Scores, TokenLogp, Tensor, Tensor]:
        """The first four arguments of every loss in :mod:`humanline_fused`."""
        return self.policy, self.reference, self.target_ids, self.loss_mask


@dataclass(frozen=True, eq=False)
class LossResult:
    """The loss of a micro-batch, its log-probs and its metrics.

    Attributes:
        loss: [], with a graph.
        logp, ref_logp: [1, n], nats, detached; of padded tokens [B, T].
        metrics: weighted sums, by name.
    """

    loss: Tensor
    logp: Tensor
    ref_logp: Tensor
    metrics: dict[str, Weighted]


@dataclass(frozen=True, eq=False)
class ScoredTokens:
    """The inputs of a loss on log-ratios. ``log_ratio``, ``logp`` and ``ref_logp`` are 0 where the mask is False.

    A row holds the tokens of one sequence that count, from its beginning; T is the number of those of the longest.

    Attributes:
        log_ratio: [B, T], nats: ``log π_θ − log π_ref``, clamped, with a graph to the policy; with humanline sampling
            not clamped, and without a graph at rejected tokens.
        logp: [B, T], nats: log-probs under the policy, with a graph.
        ref_logp: [B, T], nats: log-probs under the reference.
        loss_mask: [B, T], bool: the tokens that count.
        columns, kl: as of :class:`LossInputs`.
        num_items: [], the divisor that makes a sum over tokens their mean over the optimizer step or evaluation batch.
    """

    log_ratio: Tensor
    logp: Tensor
    ref_logp: Tensor
    loss_mask: Tensor
    columns: Mapping[str, Tensor]
    num_items: Tensor
    kl: Tensor | None = None

    def sums(self, values: Tensor) -> Tensor:
        """Return the sum over the tokens of each sequence: [B, T] to [B]."""
        return sequence_sum(values, None)

    @property
    def lengths(self) -> Tensor:
        """The number of tokens that count in each sequence, [B], float32."""
        return self.sums(self.loss_mask.float())

    @property
    def counts(self) -> Tensor:
        """True for each sequence with a token that counts, [B], bool."""
        return sequence_counts(self.loss_mask, None)


class Objective:
    """A loss, its data form and its settings. Subclass it for your own loss (docs/losses.md).

    A subclass sets :attr:`name` and :attr:`form` and defines :meth:`loss`, or :meth:`compute` for a loss that has its
    own kernels.

    Attributes:
        name: name in settings and messages.
        form: form of the data.
        default_beta: ``beta`` if none is given.
        settings: dataclass of the own settings of a built-in objective, which are fields of the run's config; your own
            take arguments instead (``objective_kwargs``).
        mismatched: True if the loss needs :attr:`LossInputs.kl`, which costs a second forward pass of both models.
        has_implicit_reward: True if ``β · Σ log_ratio`` is a reward to show to the user.
        token_mean: True if the loss is a sum over tokens divided by :attr:`ScoredTokens.num_items`: an evaluation then
            weights micro-batches by tokens, and the losses of a micro-batch's parts are added. Else the loss is a mean
            over examples, and both are weighted by examples.
    """

    name: str
    form: Form
    default_beta: float = 0.1
    settings: type[LossSettings] | None = None
    mismatched: bool = False
    has_implicit_reward: bool = True
    token_mean: bool = False

    def loss(self, tokens: ScoredTokens, config: Any) -> tuple[Tensor, Mapping[str, Metric]]:
        """Return the mean loss of a micro-batch, and its metrics.

        Args:
            tokens: log-probs and log-ratios.
            config: the run's :class:`humanline_fused.training.HumanlineConfig`.

        Returns:
            The loss, [], with a graph; and metrics by name, the same names for every batch. A tensor is reported as
            the mean of its entries, a number as its mean over examples, and a
            :class:`~humanline_fused.training.objectives.metrics.Weighted` as its total divided by its weight.
        """
        raise NotImplementedError

    def compute(self, inputs: LossInputs, config: Any) -> LossResult:
        """Return the loss of a micro-batch and its metrics, from any kind of scores."""
        ids, mask = inputs.target_ids, inputs.loss_mask
        how = inputs.perceived(config)
        bounds = how.pop("cu_seqlens")
        logp = token_logp(inputs.policy, ids, mask, impl=config.impl)
        ratio = token_log_ratio(TokenLogp(logp), inputs.reference, ids, mask, **how)
        num_items = mask.sum() if inputs.num_items is None else inputs.num_items
        rows = (ratio.log_ratio, logp, ratio.ref_logp, mask)
        log_ratio, logp, ref_logp, mask = rows if bounds is None else in_rows(rows, bounds)
        tokens = ScoredTokens(log_ratio, logp, ref_logp, mask, inputs.columns, num_items, inputs.kl)
        given = self.loss(tokens, config)
        if not isinstance(given, tuple) or len(given) != 2 or not isinstance(given[1], Mapping):
            raise TypeError(f"expected a loss and a mapping of metrics, got {type(given).__name__}")
        loss, metrics = given
        if not isinstance(loss, Tensor):
            raise TypeError(f"expected a scalar loss, a tensor of shape [], got {type(loss).__name__}")
        examples = torch.full_like(num_items, len(mask) // self.form.sides)
        weighted = {name: _weighted(name, value, examples) for name, value in metrics.items()}
        summed = Weighted(loss.detach() * examples, examples)
        if self.token_mean:
            summed = Weighted(loss.detach() * num_items, mask.sum())
        return result(loss, ratio, inputs, {"loss": summed, **weighted})

    @property
    def types(self) -> tuple[DataType, ...]:
        """The types of data that the objective accepts."""
        return self.form.types

    def takers(self, kind: DataType) -> list[str]:
        """Return the names of the objectives that accept a type of data."""
        from humanline_fused.training.objectives.table import names_taking

        names = names_taking(kind)
        return [*names, self.name] if kind in self.types and self.name not in names else names

    def own_settings(self) -> list[str]:
        """Return the names of the settings that are not common to all objectives."""
        common = {field.name for field in fields(LossSettings)}
        own = [] if self.settings is None else [f.name for f in fields(self.settings) if f.name not in common]
        return [*own, *(["scale_rewards"] if self.form.has_rewards else [])]

    def check(self, config: Any) -> None:
        """Raise ValueError if one of the objective's own settings is invalid."""

    def drops_ties(self, config: Any) -> bool:
        """Return True if groups of equal rewards are left out of a dataset."""
        return False

    def role(self, side: int, weight: float) -> str:
        """Return the display name of a sequence."""
        return self.form.role(side, weight)


def result(loss: Tensor, out: ClampedOutput, inputs: LossInputs, metrics: Mapping[str, Weighted]) -> LossResult:
    """Return a loss with its own metrics and those of the clamp."""
    shares = clamp_metrics(out, inputs.loss_mask)
    return LossResult(loss, out.logp, out.ref_logp, {**metrics, **shares})


def _weighted(name: str, value: Metric, examples: Tensor) -> Weighted:
    if isinstance(value, Weighted):
        return value
    if isinstance(value, int | float):
        return Weighted(value * examples, examples)
    if not isinstance(value, Tensor) or value.numel() == 0:
        raise TypeError(f"metric {name!r}: expected a number, a tensor with entries or a Weighted, got {value!r:.80}")
    return mean(value.detach().float())
