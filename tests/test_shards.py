"""Scores and gradients of slices of rows, put together, are those of whole rows: both epilogues, without processes."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from humanline_fused import autograd, eager
from humanline_fused.chunked_head.shards import Shards
from humanline_fused.softmax import RowScores, Softmax
from tests.error_budget import assert_within_budget

V = 40
BOUNDS = (0, 16, 30, V)
SOFTMAXES = {
    "plain": Softmax(),
    "temperature": Softmax(inverse_temperature=0.5),
    "temperature per token": Softmax(temperature=torch.tensor([0.7, 1.3, 0.9, 1.1, 1.0, 0.5])),
    "softcap": Softmax(softcap=8.0, scale=0.8),
}
LAYERS: dict[str, Any] = {"eager": eager, "triton": autograd}


class OneOfThem(Shards):
    """A slice whose gather is answered with what the slices gave before."""

    def __init__(self, epilogue: Any, first_column: int, num_columns: int) -> None:
        self.epilogue, self.first_column, self.num_columns = epilogue, torch.tensor(first_column), num_columns
        self.given: list[Tensor] = []

    def _gather(self, mine: Tensor) -> Tensor:
        self.mine = mine
        return torch.stack(self.given) if self.given else mine[None]


def rows_of(kind: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return logits [6, V] and target ids."""
    generator = torch.Generator().manual_seed(0)
    logits, ids = 3 * torch.randn(6, V, generator=generator), torch.randint(0, V, (6,), generator=generator)
    targets = torch.arange(6), ids
    match kind:
        case "masked slices" | "slices of the lowest number":
            ids %= BOUNDS[1]
            logits[:, BOUNDS[1] :] = -math.inf if kind == "masked slices" else torch.finfo(torch.float32).min
        case "an offset":
            logits += 1000
        case "a spike in one slice":
            logits[:, 20] = 200.0
        case "a far target":
            logits[targets] -= 300
        case "an impossible target":
            logits[targets] = -math.inf
    return logits.to(device), ids.to(device)


def whole(layer: Any, logits: Tensor, ids: Tensor, softmax: Softmax, gradients: Any) -> tuple[RowScores, Tensor]:
    """Return the scores of whole rows, and dlogits."""
    dlogits, (dlogp, dentropy) = logits.clone(), gradients
    scores = layer.score_rows(dlogits, ids, softmax, True)
    layer.write_dlogits_(dlogits, ids, softmax, scores, dlogp.to(scores.logp), dentropy.to(scores.logp))
    return scores, dlogits


def in_slices(layer: Any, logits: Tensor, ids: Tensor, softmax: Softmax, gradients: Any) -> tuple[Any, Tensor]:
    """Return the scores that every slice gets, and dlogits of all slices."""
    slices = [(OneOfThem(layer, a, b - a), logits[:, a:b].clone()) for a, b in pairwise(BOUNDS)]
    for shard, part in slices:
        shard.score_rows(part, ids, softmax, True)
    given, everyones = [shard.mine for shard, _ in slices], []
    for shard, part in slices:
        shard.given = given
        everyones.append(shard.score_rows(part, ids, softmax, True))
        shard.write_dlogits_(part, ids, softmax, everyones[-1], *gradients)
    return everyones, torch.cat([part for _, part in slices], 1)


@pytest.mark.parametrize("softmax", SOFTMAXES)
@pytest.mark.parametrize(
    "kind",
    [
        "plain",
        "masked slices",
        "slices of the lowest number",
        "an offset",
        "a spike in one slice",
        "a far target",
        "an impossible target",
    ],
)
def test_slices_put_together_are_the_whole_row(device, impl, kind, softmax):
    logits, ids = rows_of(kind, device)
    softmax = SOFTMAXES[softmax]
    if softmax.temperature is not None:
        softmax = softmax._replace(temperature=softmax.temperature.to(device))
    gradients = [torch.randn(6, generator=torch.Generator().manual_seed(i)).to(device) for i in (1, 2)]
    oracle, oracle_dlogits = whole(eager, logits.double(), ids, softmax, gradients)
    own, own_dlogits = whole(eager, logits, ids, softmax, gradients)
    everyones, dlogits = in_slices(LAYERS[impl], logits, ids, softmax, gradients)
    for scores in everyones:
        assert torch.equal(scores.logp, everyones[0].logp)
        assert torch.equal(scores.entropy, everyones[0].entropy)
    nats = oracle.logp[oracle.logp.isfinite()].abs()
    nats = nats.max().item() if len(nats) else 0.0
    assert_within_budget(everyones[0].logp, own.logp, oracle.logp, "logp", log_probs=nats)
    assert_within_budget(everyones[0].entropy, own.entropy, oracle.entropy, "entropy", log_probs=nats)
    unit = max(gradient.abs().max().item() for gradient in gradients) * max(1.0, math.log(V))
    assert_within_budget(dlogits, own_dlogits, oracle_dlogits, "dlogits", log_probs=nats, unit=unit)
