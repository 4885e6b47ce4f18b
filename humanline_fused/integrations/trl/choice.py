"""Chooses the forward pass of each batch, and says once which one and why."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from humanline_fused.integrations.trl.argument import Humanline
from humanline_fused.integrations.trl.body import padded, shared_prompt
from humanline_fused.integrations.trl.forward import ForwardPass, head_pass, trl_pass
from humanline_fused.model.fused_head import causal_lm, score_in_forward_
from humanline_fused.model.layout_probe import extra_cost, refusal
from humanline_fused.model.probe import probe
from humanline_fused.model.recorder import INSTEAD


class ForwardChoice:
    """Makes the forward passes of a run.

    The first batch decides: the head and the layout are tested on some of its tokens with the placed and cast model.
    A batch that cannot be laid out in one row has padded rows.

    Args:
        asked: ``head`` and ``layout``.
        model: the policy.
        reference: a second model with the policy's structure, or None.
        longest: the length of the longest sequence, tokens.
        why_trl: a reason for TRL's own forward pass that the caller knows.
        say: gets each line once.

    Raises:
        ValueError: ``head`` or ``layout`` was set by hand and is impossible; also from a call.
    """

    def __init__(
        self,
        asked: Humanline,
        model: nn.Module,
        reference: nn.Module | None,
        longest: int,
        why_trl: str | None,
        say: Callable[[str], None],
    ) -> None:
        self.asked, self.model, self.longest, self.say = asked, model, longest, say
        self.why_trl = "head='trl'" if asked.head == "trl" else why_trl or _why_no_score(model, reference)
        self.why_padded = "layout='padded'" if asked.layout == "padded" else None
        self._tested = False
        self._said: set[str] = set()
        self._refuse_what_was_set()

    def __call__(self, policy: nn.Module, inputs: dict[str, Any]) -> ForwardPass:
        """Return the forward pass on the inputs that TRL's loss gives a model.

        Args:
            policy: the model in its wrappers.
            inputs: by name.
        """
        if not self._tested:
            self._test(policy, inputs)
            self._tested = True
        if self.why_trl is not None:
            return trl_pass(inputs)
        if self.why_padded is None:
            try:
                return head_pass(shared_prompt, inputs)
            except ValueError as error:
                if self.asked.layout == "shared_prompt":
                    raise ValueError(f"layout: expected batches of plain text, but {error}") from error
                self._say(f"a batch has padded rows ({error})")
        return head_pass(padded, inputs)

    def _test(self, policy: nn.Module, inputs: dict[str, Any]) -> None:
        ids = inputs["input_ids"]
        if self.why_trl is None:
            self.why_trl = _why_no_head(policy, self.model, ids, inputs.get("attention_mask"))
        if self.why_trl is None and self.why_padded is None:
            cost = extra_cost(self.model) if self.asked.layout == "auto" else None
            self.why_padded = cost or refusal(policy, self.model, ids, self.longest)
        self._refuse_what_was_set()
        if self.why_trl is not None:
            self._say(f"TRL's own forward pass ({self.why_trl})")
        elif self.why_padded is not None:
            self._say(f"padded rows ({self.why_padded}), head on the completions only")
        else:
            self._say("one row without padding, each prompt once; head on the completions only")

    def _refuse_what_was_set(self) -> None:
        if self.why_trl is not None and self.asked.head == "fused":
            raise ValueError(f"head='fused': {self.why_trl}. Use head='auto' or 'trl'")
        why = self.why_trl or self.why_padded
        if why is not None and self.asked.layout == "shared_prompt":
            raise ValueError(f"layout='shared_prompt': {why}. Use layout='auto' or 'padded'")

    def _say(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            self.say(f"humanline: {line}")


def _why_no_score(model: nn.Module, reference: nn.Module | None) -> str | None:
    """Let the models score inside their forward; without a score it stays as it was. Return why not, or None."""
    if len(set((getattr(causal_lm(model), "hf_device_map", None) or {}).values())) > 1:
        return "the model is split by device_map"
    try:
        for part in (model, reference):
            if part is not None:
                score_in_forward_(part)
    except ValueError as error:
        return _reason(error)
    return None


def _why_no_head(policy: nn.Module, model: nn.Module, ids: Tensor, mask: Tensor | None) -> str | None:
    training = policy.training
    try:
        probe(policy, model, ids, torch.ones_like(ids) if mask is None else mask, "auto")
    except ValueError as error:
        return _reason(error)
    finally:
        policy.train(training)
    return None


def _reason(error: ValueError) -> str:
    """The message without the settings of HumanlineTrainer."""
    return str(error).partition(INSTEAD)[0].removeprefix("head='fused': ").rstrip(" .")
