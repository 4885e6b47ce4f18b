"""Check before a run that a model gives the same log-probs in a row with shared prefixes as in padded rows."""

from torch import Tensor, nn


def refusal(wrapped: nn.Module, model: nn.Module, token_ids: Tensor, longest: int) -> str | None:
    """Return why the model cannot run on rows with shared prefixes, in one short line, or None if it can.

    The model computes a few dozen tokens without gradient, in eval mode; it is left as it was found. With FSDP2, all
    ranks must call this alike.

    Args:
        wrapped: the trained module, placed and cast.
        model: the transformers or PEFT model in it.
        token_ids: some token ids of the data, any shape, int64, on the model's device.
        longest: length of the longest sequence of the run, tokens.
    """
    raise NotImplementedError
