"""What a batch scores, computed from the model's own logits; and data of given lengths."""

from typing import Any

import torch
from torch import Tensor, nn

from humanline_fused.model.tree_attention import attending_by
from humanline_fused.scores import Logits
from humanline_fused.training.data.batch import Batch


def logits_of(model: nn.Module, batch: Batch) -> Logits:
    """Return the logits of the rows that score the batch's tokens, [1, n, V]."""
    if batch.tree is None:
        logits = model(input_ids=batch.input_ids, use_cache=False).logits
    else:
        with attending_by(batch.tree):
            logits = model(input_ids=batch.input_ids, position_ids=batch.tree.position_ids, use_cache=False).logits
    return Logits(logits.flatten(0, 1)[batch.source][None])


def by_sequence(values: Tensor, batch: Batch) -> list[Tensor]:
    """Return packed values, [1, n], as one tensor for each sequence."""
    return list(values[0].split(batch.cu_seqlens.diff().tolist()))


def sums(values: Tensor, batch: Batch) -> Tensor:
    """Return the sum of packed values over the tokens of each sequence, [S]."""
    return torch.stack([part.sum() for part in by_sequence(values, batch)])


def labelled(prompt: int, completion: int, number: int = 8) -> list[dict[str, Any]]:
    """Return labelled data with prompts and completions of so many words, each beginning with another one."""

    def words(first: int, length: int) -> str:
        return " ".join([f"w{first}", *(f"w{(first + i) % 7}" for i in range(1, length))])

    texts = [(words(i, prompt), " " + words(40 + i, completion)) for i in range(number)]
    return [{"prompt": p, "completion": c, "label": i % 2 == 0} for i, (p, c) in enumerate(texts)]
