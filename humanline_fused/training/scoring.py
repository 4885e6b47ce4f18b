"""Log-probs and losses of the wrapped model's forward passes: inside its forward, or from its logits."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from humanline_fused.functional import kto_kl, token_logp
from humanline_fused.reference.lookahead import TokenScores
from humanline_fused.scores import LMHead, Logits, Scores, TokenLogp
from humanline_fused.targets import shift_targets
from humanline_fused.training.config import HumanlineConfig
from humanline_fused.training.data.batch import Batch
from humanline_fused.training.objectives.objective import LossInputs, LossResult, Objective
from humanline_fused.training.objectives.table import is_in_table
from humanline_fused.training.objectives.trial import check_loss


class Targets(NamedTuple):
    """``target_ids`` and ``loss_mask``, [B, T], of a batch."""

    ids: Tensor
    loss_mask: Tensor


def targets_of(batch: Batch) -> Targets:
    """The tokens that the batch's rows score."""
    return Targets(*shift_targets(batch.input_ids, batch.completion_mask))


class Scorer:
    """Scores and losses of micro-batches, as the config has them.

    With ``head="fused"`` the model has been given to
    :func:`humanline_fused.model.fused_head.score_in_forward_`, however it is wrapped.
    """

    def __init__(self, config: HumanlineConfig, objective: Objective) -> None:
        self.config, self.objective = config, objective

    @torch.no_grad()
    def score(self, model: nn.Module, batches: list[Batch]) -> list[TokenScores]:
        """Log-probs of the micro-batches' tokens, in the training's own grouping: another padding moves last bits."""
        model.eval()
        return [
            {f"{prefix}ref_logp": self._logp(model, part) for prefix, part in batch.passes.items()} for batch in batches
        ]

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, LossResult, Tensor]:
        """The loss of a micro-batch that has ``ref_logp``, with a graph; its result; the tokens that it counts."""
        kl = None if batch.kl is None else self._kl(model, batch.kl)
        targets = targets_of(batch)

        def compute(scores: Scores) -> LossResult:
            return self.objective.compute(self._inputs(scores, batch, targets, kl), self.config)

        out, loss = self._forward(model, batch, compute)
        if loss.dtype != out.loss.dtype:  # FSDP2's output_dtype: its graph, with the value as it was
            loss = out.loss.detach() + (loss - loss.detach())
        return loss, out, targets.loss_mask

    def try_objective(self, model: nn.Module, batch: Batch) -> None:
        """Check a loss of the user's own on a batch.

        Raises:
            TypeError, ValueError: it is no loss that a step can take; the message names the part.
        """
        if is_in_table(self.objective):
            return
        (scores,) = self.score(model, [batch])
        batch = batch.with_scores(scores)
        assert batch.ref_logp is not None
        kl = None if batch.kl is None else batch.ref_logp.new_zeros(())
        check_loss(self.objective, self._inputs(TokenLogp(batch.ref_logp), batch, targets_of(batch), kl), self.config)

    def _inputs(self, scores: Scores, batch: Batch, targets: Targets, kl: Tensor | None) -> LossInputs:
        """The inputs of the objective's loss.

        Args:
            batch: with ``ref_logp``.
        """
        assert batch.ref_logp is not None
        return LossInputs(scores, TokenLogp(batch.ref_logp), *targets, batch.columns, batch.num_items, kl)

    @torch.no_grad()
    def _kl(self, model: nn.Module, mismatched: Batch) -> Tensor:
        """KTO's z0, of log-probs that are scored as their reference's are, without dropout."""
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
        """The result of ``compute`` on the model's scores, and its ``loss``, if it has one, to start backward from.

        The hooks of DDP and FSDP2 have to see that tensor leave the model, and mixed precision may round it there. So
        nothing else passes through them, and no numbers pass in.
        """
        # No mask: padding stands behind the tokens, where a causal model's attention does not reach. With one, a model
        # would ask the device twice whether it matters, and could not take the faster causal attention.
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
