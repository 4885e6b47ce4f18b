"""What a forward pass of the wrapped model gives: log-probs, and the loss; inside it, or from its logits."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from humanline_fused.functional import kto_kl, token_logp
from humanline_fused.reference.lookahead import TokenScores
from humanline_fused.scores import LMHead, Logits, Scores, TokenLogp
from humanline_fused.targets import shift_targets
from humanline_fused.training import objective
from humanline_fused.training.config import HumanlineConfig
from humanline_fused.training.data.batch import Batch


class Scorer:
    """Scores and losses of micro-batches, as the config has them.

    With ``head="fused"`` the model has been given to
    :func:`humanline_fused.model.fused_head.score_in_forward_`, however it is wrapped.
    """

    def __init__(self, config: HumanlineConfig) -> None:
        self.config = config

    @torch.no_grad()
    def score(self, model: nn.Module, batches: list[Batch]) -> list[TokenScores]:
        """Log-probs of the micro-batches' tokens, in the training's own grouping: another padding moves last bits."""
        model.eval()
        kinds = ("", "kl_") if self.config.objective == "kto" else ("",)
        return [{f"{kind}ref_logp": self._logp(model, batch, kind) for kind in kinds} for batch in batches]

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, objective.Output, Tensor]:
        """The loss of a micro-batch that has ``ref_logp``, with a graph; what else came of it; the tokens it counts."""
        kl = self._kl(model, batch) if self.config.objective == "kto" else None
        target_ids, loss_mask = _targets(batch)
        settings = {"kl": kl, "num_items": batch.get("num_items")}

        def compute(scores: Scores) -> objective.Output:
            return objective.compute_loss(self.config, batch, scores, target_ids, loss_mask, **settings)

        out, loss = self._forward(model, batch, compute)
        if loss.dtype != out.loss.dtype:  # FSDP2's output_dtype: its graph, with the value as it was
            loss = out.loss.detach() + (loss - loss.detach())
        return loss, out, loss_mask

    @torch.no_grad()
    def _kl(self, model: nn.Module, batch: Batch) -> Tensor:
        """KTO's z0, of log-probs that are scored as their reference's are, without dropout."""
        training = model.training
        group = None if training else "local"  # evaluation's micro-batches are the same for any number of ranks
        policy = TokenLogp(self._logp(model.eval(), batch, "kl_"))
        model.train(training)
        settings: dict[str, Any] = {"clamp": self.config.humanline_clamp, "group": group, "impl": self.config.impl}
        return kto_kl(policy, TokenLogp(batch["kl_ref_logp"]), *_targets(batch, "kl_"), **settings)

    def _logp(self, model: nn.Module, batch: Batch, kind: str) -> Tensor:
        targets = _targets(batch, kind)
        return self._forward(model, batch, lambda scores: token_logp(scores, *targets, impl=self.config.impl), kind)[0]

    def _forward(
        self, model: nn.Module, batch: Batch, compute: Callable[[Scores], Any], kind: str = ""
    ) -> tuple[Any, Any]:
        """What ``compute`` makes of the model's scores, and its ``loss``, if it has one, to start backward from.

        The hooks of DDP and FSDP2 have to see that tensor leave the model, and mixed precision may round it there. So
        nothing else passes through them, and no numbers pass in.
        """
        # No mask: padding stands behind the tokens, where a causal model's attention does not reach. With one, a model
        # would ask the device twice whether it matters, and could not take the faster causal attention.
        inputs = {"input_ids": batch[f"{kind}input_ids"], "use_cache": False}
        if self.config.head == "logits":
            result = compute(Logits(model(**inputs).logits))
            return result, getattr(result, "loss", None)
        results = []

        def score(head: LMHead) -> dict[str, Tensor]:
            results.append(compute(replace(head, rows=batch[f"{kind}rows"])))
            loss = getattr(results[0], "loss", None)
            return {} if loss is None else {"loss": loss}

        outputs = model(**inputs, score=score)
        return results[0], outputs.get("loss")


def _targets(batch: Batch, kind: str = "") -> tuple[Tensor, Tensor]:
    return shift_targets(batch[f"{kind}input_ids"], batch[f"{kind}completion_mask"])
