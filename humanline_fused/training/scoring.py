"""Log-probs and losses of the wrapped model, computed inside its forward pass or from its logits."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from humanline_fused.functional import kto_kl, token_logp, token_logp_and_entropy
from humanline_fused.reference.lookahead import TokenScores
from humanline_fused.scores import LMHead, Logits, Scores, TokenLogp
from humanline_fused.targets import shift_targets
from humanline_fused.training.config import HumanlineConfig
from humanline_fused.training.data.batch import Batch
from humanline_fused.training.objectives.objective import LossInputs, LossResult, Objective
from humanline_fused.training.objectives.table import is_in_table
from humanline_fused.training.objectives.trial import check_loss, metric_names


class Targets(NamedTuple):
    """``target_ids`` and ``loss_mask`` of a batch, [B, T]."""

    ids: Tensor
    loss_mask: Tensor


def targets_of(batch: Batch) -> Targets:
    """Return the targets of a batch."""
    return Targets(*shift_targets(batch.input_ids, batch.completion_mask))


class Scorer:
    """Computes scores and losses of micro-batches, with the settings of a config.

    With ``head="fused"`` the model must have been changed by
    :func:`humanline_fused.model.fused_head.score_in_forward_` before it was wrapped.
    """

    def __init__(self, config: HumanlineConfig, objective: Objective) -> None:
        self.config, self.objective = config, objective

    @torch.no_grad()
    def score(self, model: nn.Module, batches: list[Batch], *, with_entropy: bool = False) -> list[TokenScores]:
        """Return the log-probs of the micro-batches' tokens, and with ``with_entropy`` the entropies beside them.

        The micro-batches are those of training, because another padding changes the last bits. Mismatched pairs have
        no entropies: they are not data.
        """
        model.eval()
        return [self._scores(model, batch, with_entropy) for batch in batches]

    def _scores(self, model: nn.Module, batch: Batch, with_entropy: bool) -> TokenScores:
        if with_entropy:
            score: Any = partial(token_logp_and_entropy, impl=self.config.impl)
            out, _ = self._forward(model, batch, lambda scores: score(scores, *targets_of(batch)))
            scores = {"ref_logp": out.logp, "ref_entropy": out.entropy}
        else:
            scores = {"ref_logp": self._logp(model, batch)}
        return scores if batch.kl is None else scores | {"kl_ref_logp": self._logp(model, batch.kl)}

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, LossResult, Tensor]:
        """Return the loss of a micro-batch that has ``ref_logp``, with a graph; its result; and its loss mask."""
        kl = None if batch.kl is None else self._kl(model, batch.kl)
        targets = targets_of(batch)

        def compute(scores: Scores) -> LossResult:
            return self.objective.compute(self._inputs(scores, batch, targets, kl), self.config)

        out, loss = self._forward(model, batch, compute)
        if loss.dtype != out.loss.dtype:  # FSDP2's output_dtype: keep its graph and the unrounded value
            loss = out.loss.detach() + (loss - loss.detach())
        return loss, out, targets.loss_mask

    def try_objective(self, model: nn.Module, batch: Batch) -> None:
        """Check a user-defined loss on a batch.

        Raises:
            TypeError, ValueError: a training step cannot use the loss; the message names the faulty part.
        """
        if is_in_table(self.objective):
            return
        (scores,) = self.score(model, [batch])
        batch = batch.with_scores(scores)
        assert batch.ref_logp is not None
        kl = None if batch.kl is None else batch.ref_logp.new_zeros(())
        check_loss(self.objective, self._inputs(TokenLogp(batch.ref_logp), batch, targets_of(batch), kl), self.config)

    def metric_names(self, batch: Batch) -> set[str]:
        """Return the names of the metrics of a micro-batch, found without the model: every log-prob is set to -1."""
        batch = batch.with_scores(
            {f"{prefix}ref_logp": torch.full(part.input_ids.shape, -1.0) for prefix, part in batch.passes.items()}
        )
        assert batch.ref_logp is not None
        kl = None if batch.kl is None else batch.ref_logp.new_zeros(())
        inputs = self._inputs(TokenLogp(batch.ref_logp), batch, targets_of(batch), kl)
        return metric_names(self.objective, inputs, self.config)

    def _inputs(self, scores: Scores, batch: Batch, targets: Targets, kl: Tensor | None) -> LossInputs:
        """Return the inputs of the objective's loss on a batch that has ``ref_logp``."""
        assert batch.ref_logp is not None
        ref = TokenLogp(batch.ref_logp)
        return LossInputs(scores, ref, *targets, batch.columns, batch.num_items, kl, batch.sampling)

    @torch.no_grad()
    def _kl(self, model: nn.Module, mismatched: Batch) -> Tensor:
        """Return KTO's z0, from log-probs scored without dropout, like those of the reference."""
        training = model.training
        group = None if training else "local"  # evaluation's micro-batches are the same for any number of ranks
        policy = TokenLogp(self._logp(model.eval(), mismatched))
        model.train(training)
        assert mismatched.ref_logp is not None
        settings: dict[str, Any] = {"clamp": self.config.humanline_clamp, "group": group, "impl": self.config.impl}
        return kto_kl(policy, TokenLogp(mismatched.ref_logp), *targets_of(mismatched), **settings)

    def _logp(self, model: nn.Module, batch: Batch) -> Tensor:
        targets = targets_of(batch)
        return self._forward(model, batch, lambda scores: token_logp(scores, *targets, impl=self.config.impl))[0]

    def _forward(self, model: nn.Module, batch: Batch, compute: Callable[[Scores], Any]) -> tuple[Any, Any]:
        """Return the result of ``compute`` on the model's scores, and the ``loss`` that backward starts from, if any.

        Only the loss leaves the model through its outputs: the hooks of DDP and FSDP2 must see it, and mixed precision
        may round it. All other values bypass these hooks.
        """
        # No attention mask: padding follows the tokens, so causal attention never reads it. With a mask, a model would
        # wait for the device twice to test it, and could not use the faster causal attention.
        inputs = {"input_ids": batch.input_ids, "use_cache": False}
        if self.config.head == "logits":
            result = compute(Logits(model(**inputs).logits))
            return result, getattr(result, "loss", None)
        results = []

        def score(head: LMHead) -> dict[str, Tensor]:
            results.append(compute(replace(head, rows=batch.rows)))
            loss = getattr(results[0], "loss", None)
            return {} if loss is None else {"loss": loss}

        outputs = model(**inputs, score=score)
        return results[0], outputs.get("loss")
