"""Hidden states of a model before its head, for checks before a run: their rounding, and the model's dropout."""

from typing import Any

import torch
from torch import Tensor, nn

ROUNDINGS = 16  # of one layer, each by half an epsilon; those of different layers are independent


class Body:
    """Computes the hidden states that reach the head, [rows, tokens, hidden]; of a model without one its logits.

    Attributes:
        dtype: of the last product, which under autocast is not that of the hidden states.
    """

    dtype = torch.float32

    def __init__(self, wrapped: nn.Module, model: Any) -> None:
        self.wrapped, self.head = wrapped, model.get_output_embeddings()
        self.implementation = model.config._attn_implementation
        self.layers = getattr(model.config.get_text_config(), "num_hidden_layers", 1)
        self.device = next(model.parameters()).device

    def __call__(self, ids: Tensor, **inputs: Tensor) -> Tensor:
        seen: list[tuple[Tensor, torch.dtype]] = []
        inputs = {name: value.to(self.device) for name, value in {"input_ids": ids, **inputs}.items()}
        if self.head is None:
            logits = self.wrapped(**inputs, use_cache=False).logits
            self.dtype = logits.dtype
            return logits
        hook = self.head.register_forward_hook(lambda _, args, logits: seen.append((args[0], logits.dtype)))
        try:
            self.wrapped(**inputs, use_cache=False)
        finally:
            hook.remove()
        hidden, self.dtype = seen[-1]
        return hidden.detach()


def rounding(hidden: Tensor, products: torch.dtype, layers: int) -> float:
    """Return the largest relative difference between two computations of hidden states that rounding explains."""
    eps = max(torch.finfo(dtype).eps for dtype in (hidden.dtype, products))
    if hidden.is_cuda and hidden.dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest":
        eps = max(eps, torch.finfo(torch.float16).eps)  # TensorFloat-32 has as many bits
    return ROUNDINGS * eps * layers**0.5


def dropout_of(module: nn.Module) -> float:
    """Return the largest dropout probability of a module, or 0."""
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return module.p
    numbers = {name: value for name, value in vars(module).items() if isinstance(value, float)}
    return max([value for name, value in numbers.items() if name.endswith(("dropout", "layerdrop"))], default=0.0)
