"""Check before a run that the policy's training forward has no noise of its own.

Humanline compares the log-probs of the training forward with those of the reference, which is scored in eval mode. It
would take noise of the model (dropout, a router's jitter, layers that are left out) for a change of the policy, and
clamp tokens because of it.
"""

import warnings

import torch
from torch import Tensor, nn

from humanline_fused.model.fused_head import causal_lm
from humanline_fused.model.hidden_states import Body, dropout_of, rounding

PROBED_TOKENS = 32

INSTEAD = "Turn it off (disable_dropout=True), or train without humanline (clamp=False, perception='clamp')"


def refuse_dropout(model: nn.Module) -> None:
    """Raise ValueError if a dropout probability of a model is not 0."""
    if probability := max(map(dropout_of, model.modules())):
        raise ValueError(
            f"disable_dropout: expected True, or a model without dropout, got dropout {probability}: its noise is "
            f"in the training forward and not in the reference's, and the clamp would cut by it. {INSTEAD}"
        )


@torch.no_grad()
def refuse_noise(wrapped: nn.Module, model: nn.Module, input_ids: Tensor) -> None:
    """Raise ValueError if the training forward of a model differs from its evaluation. Leaves eval mode on.

    A difference is noise if it is beyond rounding; and also if two passes in training mode differ and two in eval mode
    do not. The generators of random numbers are left as they were. With FSDP2, all ranks must call this alike.

    Args:
        wrapped: the trained module, placed and cast.
        model: the transformers or PEFT model in it.
        input_ids: a batch, [B, T], int64, of which the first tokens are used.
    """
    body, ids = Body(wrapped, causal_lm(model)), input_ids[:1, :PROBED_TOKENS]
    devices = [body.device] if body.device.type == "cuda" else []  # the ids may be elsewhere
    with torch.random.fork_rng(devices), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a checkpointed forward misses its gradient
        wrapped.train()
        trained = body(ids), body(ids)
        wrapped.eval()
        evaluated = body(ids), body(ids)
    difference = ((trained[0] - evaluated[0]).double().norm() / evaluated[0].double().norm()).item()
    random = torch.equal(*evaluated) and not torch.equal(*trained)
    if random or not difference <= rounding(evaluated[0], body.dtype, body.layers):
        raise ValueError(
            "expected a policy whose training forward computes what its evaluation does, got hidden states that differ "
            f"by {difference:.1e} of their size: the model's own noise, by which the clamp would cut. {INSTEAD}"
        )
