"""Sequences with shared prefixes, and their log-probs from padded rows and from one row."""

from typing import Any

import torch
from torch import Tensor, nn

from humanline_fused.model.prefix_tree import prefix_tree
from humanline_fused.model.tree_attention import attending_by
from tests.test_head import VOCABULARY


def sequences() -> list[Tensor]:
    """Return the sequences of two prompts: common beginnings, a sequence that begins another, and equal ones."""
    generator = torch.Generator().manual_seed(3)

    def run(length: int) -> Tensor:
        return torch.randint(3, VOCABULARY, (length,), generator=generator)

    prompt, beginning, other = run(7), run(3), run(4)
    one = torch.cat([prompt, beginning, run(4)])
    two = torch.cat([prompt, beginning, run(6)])
    return [
        one,
        torch.cat([other, run(5)]),
        two,
        torch.cat([prompt, run(5)]),
        two[:12],
        one,
        torch.cat([other, run(3)]),
    ]


def padded_logp(model: Any) -> Tensor:
    """Return the log-probs of all tokens but the first of each sequence, one sequence after the other, from [S, T]."""
    rows = sequences()
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    logits = model(input_ids=ids, use_cache=False).logits
    return torch.cat([_logp(logits[i, : len(row) - 1], row[1:]) for i, row in enumerate(rows)])


def row_logp(model: Any) -> Tensor:
    """Return the same log-probs from one row; a backward pass of them runs outside ``attending_by``."""
    rows = sequences()
    tree = prefix_tree([row[:-1] for row in rows])
    with attending_by(tree):
        logits = model(input_ids=tree.input_ids, position_ids=tree.position_ids, use_cache=False).logits[0]
    return torch.cat([_logp(logits[at], row[1:]) for at, row in zip(tree.rows, rows, strict=True)])


def _logp(logits: Tensor, targets: Tensor) -> Tensor:
    return logits.log_softmax(-1).gather(-1, targets[:, None])[:, 0]
