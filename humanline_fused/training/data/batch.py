"""From examples to the padded tensors of one forward pass."""

from collections.abc import Sequence

import torch
from torch import Tensor

from humanline_fused.training.data.plan import MicroBatch
from humanline_fused.training.data.prepare import Example

Batch = dict[str, Tensor]
"""``input_ids``, ``attention_mask`` (int64), ``completion_mask`` (bool), each [B, T], and ``rows`` [n] (int64), the
positions ``b · T + t`` whose targets count, always on the CPU; the same under ``kl_`` for KTO's mismatched pairs;
``desirable`` [B] bool (KTO); ``advantages`` [B] float32 (GRPO). The trainer adds ``ref_logp`` [B, T] (and
``kl_ref_logp``), float32, nats."""


def pad(pairs: Sequence[tuple[Tensor, Tensor]], pad_token_id: int, max_length: int) -> Batch:
    """Right-pad (prompt, completion) pairs to the longest of them; longer than ``max_length`` keeps the start."""
    lengths = [length_of(prompt, completion, max_length) for prompt, completion in pairs]
    shape = len(pairs), max(lengths)
    input_ids = torch.full(shape, pad_token_id, dtype=torch.int64)
    attention_mask = torch.zeros(shape, dtype=torch.int64)
    completion_mask = torch.zeros(shape, dtype=torch.bool)
    rows = []
    for row, ((prompt, completion), length) in enumerate(zip(pairs, lengths, strict=True)):
        input_ids[row, :length] = torch.cat([prompt, completion])[:length]
        attention_mask[row, :length] = 1
        completion_mask[row, len(prompt) : length] = True
        rows.append(
            torch.arange(max(len(prompt), 1) - 1, length - 1) + row * shape[1]
        )  # each scores the token after it
    masks = {"attention_mask": attention_mask, "completion_mask": completion_mask}
    return {"input_ids": input_ids, **masks, "rows": torch.cat(rows)}


def sequences(examples: Sequence[Example], micro: MicroBatch, objective: str) -> dict[str, list[tuple[Tensor, Tensor]]]:
    """The (prompt, completion) pairs of a micro-batch's forward passes; sequence i belongs to ``ids[i % len(ids)]``.

    DPO: the first half is chosen, the second half rejected. KTO: under ``kl_`` each prompt with the completion of the
    example that follows in the global micro-batch (arXiv 2509.24207, section 4).
    """
    rows = [examples[i] for i in micro.ids]
    sides = range(2 if objective == "dpo" else 1)
    kinds = {"": [(row.prompt_ids, row.completions[side]) for side in sides for row in rows]}
    if objective == "kto":
        following = [examples[i] for i in micro.following]
        kinds["kl_"] = [(row.prompt_ids, other.completions[0]) for row, other in zip(rows, following, strict=True)]
    return kinds


def length_of(prompt: Tensor, completion: Tensor, max_length: int) -> int:
    """Tokens that a sequence keeps."""
    return min(len(prompt) + len(completion), max_length)


def collate(
    examples: Sequence[Example], micro: MicroBatch, objective: str, *, pad_token_id: int, max_length: int
) -> Batch:
    """The batch of one micro-batch, a pure function of it."""
    batch: Batch = {}
    for kind, pairs in sequences(examples, micro, objective).items():
        batch |= {f"{kind}{name}": tensor for name, tensor in pad(pairs, pad_token_id, max_length).items()}
    weights = [examples[i].weight for i in micro.ids]
    if objective == "kto":
        batch["desirable"] = torch.tensor([weight > 0 for weight in weights])
    if objective == "grpo":
        batch["advantages"] = torch.tensor(weights)
    return batch


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch where it is computed on; ``rows`` stay, so that nobody waits for a device to count them."""
    return {
        name: tensor if name.endswith("rows") else tensor.to(device, non_blocking=True)
        for name, tensor in batch.items()
    }


def num_loss_tokens(example: Example) -> int:
    """Tokens of the example that a loss counts: its completions', less a sequence's first, which nothing predicts."""
    return sum(len(c) - (len(example.prompt_ids) == 0 and len(c) > 0) for c in example.completions)
