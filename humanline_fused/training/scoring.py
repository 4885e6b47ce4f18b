"""Log-probs and losses of the wrapped model, computed inside its forward pass or from its logits."""

import inspect
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from humanline_fused.functional import kto_kl, token_logp, token_logp_and_entropy
from humanline_fused.model.fused_head import causal_lm
from humanline_fused.model.tree_attention import attending_as_ever, attending_by
from humanline_fused.reference.lookahead import TokenScores
from humanline_fused.scores import LMHead, Logits, Scores, TokenLogp
from humanline_fused.training.config import HumanlineConfig
from humanline_fused.training.data.batch import Batch, concatenated
from humanline_fused.training.loss_options import ENTROPY, of_whole_logits, packed_again, with_entropy
from humanline_fused.training.objectives.objective import LossInputs, LossResult, Objective
from humanline_fused.training.objectives.table import is_in_table
from humanline_fused.training.objectives.trial import check_loss, metric_names
from humanline_fused.training.whole_logits import WholeLogits
from humanline_fused.types import TokenLogpOutput


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
        def compute(scores: Scores | WholeLogits) -> TokenScores:
            if with_entropy:
                out = self._logp_and_entropy(batch, scores)
                return {"ref_logp": out.logp, "ref_entropy": out.entropy}
            return {"ref_logp": self._logp_of(scores, batch)}

        def compute_both(scores: Any) -> TokenScores:
            # Two products with the head, of the shapes that a loss has: the same bits as an evaluation of this model.
            scores, others = _split(scores, batch.target_ids.shape[1])
            assert batch.kl is not None
            return compute(scores) | {"kl_ref_logp": self._logp_of(others, batch.kl)}

        if batch.together is not None:
            return self._forward(model, batch.together, compute_both)[0]
        scored = self._forward(model, batch, compute)[0]
        return scored if batch.kl is None else scored | {"kl_ref_logp": self._logp(model, batch.kl)}

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, LossResult]:
        """Return the loss of a micro-batch that has ``ref_logp``, times its share, with a graph; and its result."""
        together = batch.together if batch.trains_together or not torch.is_grad_enabled() else None
        if batch.z0 is not None:
            together, kl = None, batch.z0
        else:
            kl = None if batch.kl is None or together is not None else self._kl(model, [batch])

        def compute(scores: Scores | WholeLogits) -> LossResult:
            z0 = kl
            if together is not None:
                assert batch.kl is not None
                assert not isinstance(scores, WholeLogits)
                scores, others = _split(scores, batch.target_ids.shape[1])
                z0 = self._z0(self._logp_of(others, batch.kl), batch.kl, model.training)
            return self._loss_of(scores, batch, z0)

        out, loss = self._forward(model, batch if together is None else together, compute)
        if loss.dtype != out.loss.dtype:  # FSDP2's output_dtype: keep its graph and the unrounded value
            loss = out.loss.detach() + (loss - loss.detach())
        return loss, out

    def _loss_of(self, scores: Scores | WholeLogits, batch: Batch, kl: Tensor | None) -> LossResult:
        config = self.config

        def compute(inputs: LossInputs, config: HumanlineConfig) -> LossResult:
            result = self.objective.compute(inputs, config)
            return result if batch.share == 1 else replace(result, loss=result.loss * batch.share)

        if config.takes_entropy:
            scored = self._logp_and_entropy(batch, scores)
            result = compute(self._inputs(TokenLogp(scored.logp), batch, kl), config)
            # The bonus is a sum over tokens, so it needs no share; a repetition, whose share is 0, has none.
            return with_entropy(result, scored.entropy, batch.num_items, config.entropy_coef if batch.share else 0.0)
        if not isinstance(scores, WholeLogits):
            return compute(self._inputs(scores, batch, kl), config)
        if config.one_launch and batch.num_items is not None:
            inputs = of_whole_logits(self._inputs(scores.scores, batch, kl), scores)
            return packed_again(compute(inputs, config), scores)
        return compute(self._inputs(TokenLogp(scores.token_logp()), batch, kl), config)

    def with_z0(self, model: nn.Module, parts: Sequence[Batch]) -> list[Batch]:
        """Return the parts of a micro-batch with the reference point of all of it, if the loss has one.

        A repeated part is scored, because its forward pass may be collective, but its pairs do not count.
        """
        if not self.objective.mismatched:
            return list(parts)
        z0 = self._kl(model, parts)
        return [replace(part, z0=z0) for part in parts]

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
        check_loss(self.objective, self._inputs(TokenLogp(batch.ref_logp), batch, kl), self.config)

    def metric_names(self, batch: Batch) -> set[str]:
        """Return the names of the metrics of a micro-batch, found without the model: every log-prob is set to -1."""
        batch = batch.with_scores(
            {f"{prefix}ref_logp": torch.full(part.target_ids.shape, -1.0) for prefix, part in batch.passes.items()}
        )
        assert batch.ref_logp is not None
        kl = None if batch.kl is None else batch.ref_logp.new_zeros(())
        names = metric_names(self.objective, self._inputs(TokenLogp(batch.ref_logp), batch, kl), self.config)
        return names | {ENTROPY} if self.config.takes_entropy else names

    def _inputs(self, scores: Scores, batch: Batch, kl: Tensor | None) -> LossInputs:
        """Return the inputs of the objective's loss on a batch that has ``ref_logp``."""
        assert batch.ref_logp is not None
        return LossInputs(
            policy=scores,
            reference=TokenLogp(batch.ref_logp),
            target_ids=batch.target_ids,
            loss_mask=batch.loss_mask,
            columns=batch.columns,
            cu_seqlens=batch.cu_seqlens,
            num_items=batch.num_items,
            kl=kl,
            sampling=batch.sampling,
        )

    @torch.no_grad()
    def _kl(self, model: nn.Module, parts: Sequence[Batch]) -> Tensor:
        """Return KTO's z0 of a micro-batch, from log-probs scored without dropout, like those of the reference."""
        training = model.training
        model.eval()
        scored = [(part.kl, self._logp(model, part.kl), part) for part in parts if part.kl is not None]
        model.train(training)
        counted = [(kl, logp) for kl, logp, part in scored if part.share or not part.repeated]
        mismatched, logps = zip(*counted, strict=True)
        return self._z0(torch.cat(logps, dim=1), concatenated(mismatched), training)

    def _z0(self, logp: Tensor, mismatched: Batch, training: bool) -> Tensor:
        """Return KTO's z0 of the policy's log-probs of mismatched pairs."""
        group = None if training else "local"  # evaluation's micro-batches are the same for any number of ranks
        assert mismatched.ref_logp is not None
        tokens = TokenLogp(mismatched.ref_logp), mismatched.target_ids, mismatched.loss_mask
        settings: dict[str, Any] = {"clamp": self.config.humanline_clamp, "group": group, "impl": self.config.impl}
        return kto_kl(TokenLogp(logp), *tokens, cu_seqlens=mismatched.cu_seqlens, **settings)

    def _logp(self, model: nn.Module, batch: Batch) -> Tensor:
        return self._forward(model, batch, partial(self._logp_of, batch=batch))[0]

    @torch.no_grad()
    def _logp_of(self, scores: Scores | WholeLogits, batch: Batch) -> Tensor:
        if isinstance(scores, WholeLogits):
            return scores.token_logp()
        return token_logp(scores, batch.target_ids, batch.loss_mask, impl=self.config.impl)

    def _logp_and_entropy(self, batch: Batch, scores: Any) -> TokenLogpOutput:
        if isinstance(scores, WholeLogits):
            return scores.token_logp_and_entropy()
        return token_logp_and_entropy(scores, batch.target_ids, batch.loss_mask, impl=self.config.impl)

    def _forward(
        self, model: nn.Module, batch: Batch, compute: Callable[[Scores | WholeLogits], Any]
    ) -> tuple[Any, Any]:
        """Return the result of ``compute`` on the scores of the batch's rows, and the ``loss`` for backward, if any.

        Only the loss leaves the model through its outputs: the hooks of DDP and FSDP2 must see it, and mixed precision
        may round it. All other values bypass these hooks.
        """
        # No attention mask: padding follows the tokens, so causal attention never reads it. With a mask, a model would
        # wait for the device twice to test it, and could not use the faster causal attention.
        inputs: dict[str, Any] = {"input_ids": batch.input_ids, "use_cache": False}
        if batch.tree is not None:
            inputs["position_ids"] = batch.tree.position_ids.to(batch.input_ids.device, non_blocking=True)
        with nullcontext() if batch.tree is None else attending_by(batch.tree):
            if self.config.head == "fused":
                return self._in_forward(model, batch, inputs, compute)
            logits = self._logits(model, batch, inputs)
        result = compute(logits)
        return result, getattr(result, "loss", None)

    def _logits(self, model: nn.Module, batch: Batch, inputs: dict[str, Any]) -> Scores | WholeLogits:
        temperature = self.config.temperature_of_loss
        if batch.tree is None:
            logits = Logits(model(**inputs).logits, temperature=temperature)
            return WholeLogits(logits, batch, self.config.impl)
        rows = batch.source.to(batch.input_ids.device, non_blocking=True)
        if keeps_rows(model):
            return Logits(model(**inputs, logits_to_keep=rows).logits, temperature=temperature)
        return Logits(model(**inputs).logits[:, rows], temperature=temperature)

    def _in_forward(
        self, model: nn.Module, batch: Batch, inputs: dict[str, Any], compute: Callable[[LMHead], Any]
    ) -> tuple[Any, Any]:
        results = []

        def score(head: LMHead) -> dict[str, Tensor]:
            rows = replace(_rows_of(head, batch.source), temperature=self.config.temperature_of_loss)
            with attending_as_ever():
                results.append(compute(rows))
            loss = getattr(results[0], "loss", None)
            return {} if loss is None else {"loss": loss}

        outputs = model(**inputs, score=score)
        return results[0], outputs.get("loss")


def keeps_rows(model: nn.Module) -> bool:
    """Return whether the forward of the transformers model in a wrapped model can compute the logits of some rows."""
    while isinstance(inside := getattr(model, "module", None), nn.Module):
        model = inside
    return "logits_to_keep" in inspect.signature(causal_lm(model).forward).parameters


def _split(scores: Scores, number: int) -> tuple[Scores, Scores]:
    """Return the scores of the first ``number`` of packed tokens, and those of the others."""
    parts = slice(None, number), slice(number, None)
    match scores:
        case LMHead(hidden):
            given = [hidden[:, part] for part in parts]
            first, second = (replace(scores, hidden=rows, rows=torch.arange(rows.shape[1])) for rows in given)
        case Logits(logits):
            first, second = (replace(scores, logits=logits[:, part]) for part in parts)
        case TokenLogp(logp):
            first, second = (TokenLogp(logp[:, part]) for part in parts)
    return first, second


def _rows_of(head: LMHead, source: Tensor) -> LMHead:
    """Return the head of the rows ``source`` [n] of [B, T], packed: hidden states [1, n, H]. A row may occur twice."""
    hidden = head.hidden.flatten(0, 1)[source.to(head.hidden.device, non_blocking=True)][None]
    return replace(head, hidden=hidden, rows=torch.arange(len(source)))
