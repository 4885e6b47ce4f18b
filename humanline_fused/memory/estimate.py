"""Bytes of each part of a training step."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from humanline_fused.memory.saved_activations import Saved, saved_activations
from humanline_fused.training.config import Reference
from humanline_fused.training.lora import with_adapter
from humanline_fused.training.model_settings import ModelSettings
from humanline_fused.training.start import loading

ADAM = 2
"""Numbers that AdamW keeps of every trained one."""

FOUR_BIT = 4.127 / 8
"""Bytes of a weight in NF4 with doubly quantised constants (arXiv 2305.14314, section 3)."""

MOST_TOKENS = 2**24
"""Largest number of tokens that is looked for."""

GPU_WORKSPACE = (2**31, 2**32)
"""Bytes of the head's chunk of logits on a GPU: at least, and at most (chunked_head/chunks.py)."""


@dataclass(frozen=True)
class Estimate:
    """Bytes of a training step, as an upper bound: parts are added whose peaks do not all coincide.

    Attributes:
        parameters: number of the model's weights.
        trained: number of the weights that are trained.
        fixed: bytes that do not depend on the batch, by part.
        saved: bytes of activations.
        vocabulary, hidden: rows and columns of the head.
        itemsize: bytes of a number of the computation.
        trains_head: whether the head has a gradient.
        workspace: least and most bytes of a chunk of logits.
    """

    parameters: int
    trained: int
    fixed: dict[str, float]
    saved: Saved
    vocabulary: int
    hidden: int
    itemsize: int
    trains_head: bool
    workspace: tuple[int, int] = GPU_WORKSPACE

    def parts(self, tokens: int, *, checkpointing: bool) -> dict[str, float]:
        """Return the bytes of every part, for a forward pass of so many tokens, all of which count."""
        per_token = self.saved.per_token_checkpointed if checkpointing else self.saved.per_token
        work = 2 * self.saved.largest  # a layer's backward pass holds the gradients of an operation's input and output
        return self.fixed | {"activations": (per_token + work) * tokens, "head": self.head(tokens)}

    def total(self, tokens: int, *, checkpointing: bool) -> float:
        """Return the sum of :meth:`parts`."""
        return sum(self.parts(tokens, checkpointing=checkpointing).values())

    def head(self, tokens: int) -> float:
        """Return the bytes of the loss: a chunk of logits, rows of hidden states, and the head's own gradient."""
        row = self.vocabulary * self.itemsize
        chunk = min(tokens * row, max(self.workspace[0], min(4096 * row, self.workspace[1])))
        rows = tokens * self.hidden * (self.itemsize + 2 * 4)  # the factors, their gradient's sum, and the gradient
        return chunk + rows + self.trains_head * 4 * self.vocabulary * self.hidden

    def most_tokens(self, memory: float, *, checkpointing: bool) -> int:
        """Return the largest number of tokens, up to MOST_TOKENS, that fits into ``memory`` bytes; 0 if none does."""
        low, high = 0, MOST_TOKENS
        while low < high:
            middle = (low + high + 1) // 2
            if self.total(middle, checkpointing=checkpointing) <= memory:
                low = middle
            else:
                high = middle - 1
        return low


def estimate(
    model: str,
    settings: ModelSettings,
    *,
    reference: Reference = "lookahead",
    bf16: bool = True,
    workspace: tuple[int, int] = GPU_WORKSPACE,
) -> Estimate:
    """Return the memory of a step of AdamW, from the model's config alone.

    Args:
        model: a folder with a config, or a model name.
        settings: data type of the weights, LoRA adapter, 4-bit base weights.
        reference: the kind of reference.
        bf16: compute in bfloat16 by autocast, as the trainer does on a GPU.
        workspace: least and most bytes of a chunk of logits.

    Raises:
        ValueError, OSError: there is no config, or no model of transformers for it.
    """
    with loading("config", model):
        config: Any = AutoConfig.from_pretrained(model, **settings.source())
    dtype = settings.model_dtype
    weights = (config.dtype or torch.float32) if dtype == "auto" else getattr(torch, dtype)
    computed = torch.bfloat16 if bf16 and weights != torch.float16 else weights
    with loading("config", model), torch.device("meta"):
        policy = AutoModelForCausalLM.from_config(config, dtype=weights, attn_implementation="sdpa")
        policy = with_adapter(policy, settings, seed=0)
    saved = saved_activations(policy, computed)
    head: Any = policy.get_output_embeddings()
    vocabulary, hidden = head.weight.shape
    trained = [p for p in policy.parameters() if p.requires_grad]
    fixed = {"weights": _bytes(policy.parameters()), "gradients": _bytes(trained), "optimizer": ADAM * _bytes(trained)}
    if settings.load_in_4bit:
        fixed["weights"] -= (1 - FOUR_BIT / weights.itemsize) * _bytes(_quantised(policy, head))
    second = {"copy": fixed["weights"], "frozen": fixed["weights"], "adapter": _bytes(trained)}
    fixed["reference"] = second.get(reference, 0.0)
    fixed["weights, cast"] = saved.casts + (head.weight.numel() * computed.itemsize if computed != weights else 0)
    return Estimate(
        parameters=sum(p.numel() for name, p in policy.named_parameters() if "lora_" not in name),
        trained=sum(p.numel() for p in trained),
        fixed=fixed,
        saved=saved,
        vocabulary=vocabulary,
        hidden=hidden,
        itemsize=computed.itemsize,
        trains_head=head.weight.requires_grad,
        workspace=workspace,
    )


def _bytes(tensors: Iterable[torch.Tensor]) -> float:
    return float(sum(tensor.numel() * tensor.element_size() for tensor in tensors))


def _quantised(model: nn.Module, head: nn.Module) -> list[torch.Tensor]:
    """Return the weights that bitsandbytes quantises: those of linear layers but the head's and an adapter's."""
    linear = ((name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear))
    return [module.weight for name, module in linear if module is not head and "lora_" not in name]
