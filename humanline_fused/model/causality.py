"""Check before a run that a token's hidden state does not depend on later tokens.

Rows with shared prompts are checked with their attention. Padded rows have no attention mask, so that a model whose
tokens see later ones would read the padding, and the token that it is to predict.
"""

import torch
from torch import Tensor, nn

from humanline_fused.model.fused_head import causal_lm
from humanline_fused.model.hidden_states import Body, rounding

PROBED_TOKENS = 16


@torch.no_grad()
def refuse_later_tokens(wrapped: nn.Module, model: nn.Module, token_ids: Tensor, longest: int) -> None:
    """Raise ValueError if the hidden states of the first tokens change with the last ones. Leaves eval mode on.

    With FSDP2, all ranks must call this alike.

    Args:
        wrapped: the trained module, placed and cast.
        model: the transformers or PEFT model in it.
        token_ids: some token ids of the data, int64; of one single id nothing can be tested.
        longest: length of the longest sequence of the run, tokens; the model has as many positions.
    """
    model = causal_lm(model)
    ids, length = token_ids.unique(), min(PROBED_TOKENS, longest)
    kept = length // 2
    if len(ids) < 2 or not kept:
        return
    places = torch.arange(length, device=ids.device)
    rows = ids[places % len(ids)], ids[(places + (places >= kept)) % len(ids)]
    wrapped.eval()
    body = Body(wrapped, model)
    one, other = (body(row[None])[0, :kept] for row in rows)
    difference = ((one - other).double().norm() / other.double().norm()).item()
    if difference > rounding(other, body.dtype, body.layers):
        raise ValueError(
            f"model: expected one whose tokens see no later ones, got {type(model).__name__}, whose hidden states "
            f"change with later tokens by {difference:.1e} of their size"
        )
