"""Scores of a chunk of rows, and their gradient for coefficients of 1 in their place: one launch, or two."""

import math

import pytest
import torch
from torch import Tensor

from humanline_fused import LMHead, TokenLogp, autograd
from humanline_fused.autograd import epilogue
from humanline_fused.softmax import RowScores, Softmax
from humanline_kernels.tiles import score_and_dlogits_tiles, vocabulary_tiles
from tests.head_inputs import head_batch
from tests.inputs import loss_of
from tests.launch_counter import launches

SOFTMAXES = {
    "plain": Softmax(),
    "scaled": Softmax(inverse_temperature=1 / 0.7, scale=0.5),
    "per token": Softmax(temperature=torch.tensor([0.7, 1.3, 0.9, 1.1, 1.0])),
}
LONG = 77001
"""In bfloat16 a row of all that there is: tiles that are loaded at once, single tiles, and part of one."""


def rows_of(device: torch.device, dtype: torch.dtype, V: int) -> tuple[Tensor, Tensor]:
    """Return five rows of logits on 16-byte boundaries, as a head's are, and ids, among them the first and the last."""
    generator = torch.Generator().manual_seed(V)
    wide = torch.full((5, -(-V // 8) * 8 + 8), 7.0)
    wide[:, :V] = 3 * torch.randn(5, V, generator=generator)
    ids = torch.randint(0, V, (5,), generator=generator)
    ids[0], ids[1] = 0, V - 1
    return wide.to(dtype).to(device), ids.to(device)


def in_two_launches(wide: Tensor, ids: Tensor, V: int, softmax: Softmax) -> RowScores:
    scores = autograd.score_rows(wide[:, :V], ids, softmax, False)
    autograd.write_dlogits_(wide[:, :V], ids, softmax, scores, torch.ones_like(scores.logp), None)
    return scores


def assert_bits_of_two_launches(wide: Tensor, ids: Tensor, V: int, softmax: Softmax = SOFTMAXES["plain"]) -> RowScores:
    """The same scores, the same dlogits, and the same numbers between the rows."""
    if softmax.temperature is not None:
        softmax = softmax._replace(temperature=softmax.temperature.to(wide.device))
    other = wide.clone()
    expected = in_two_launches(other, ids, V, softmax)
    scores = autograd.score_and_write_dlogits_(wide[:, :V], ids, softmax)
    for name, actual, of_two in zip(RowScores._fields, scores, expected, strict=True):
        torch.testing.assert_close(actual, of_two, rtol=0, atol=0, equal_nan=True, msg=name)
    assert torch.equal(wide.isnan(), other.isnan())
    assert torch.equal(wide.nan_to_num(), other.nan_to_num())
    return scores


# Value and gradient


def test_a_row_of_two_equal_logits_has_half_of_each(device):
    logits = torch.tensor([[0.0, 0.0]], device=device)
    scores = autograd.score_and_write_dlogits_(logits, torch.tensor([1], device=device), Softmax())
    assert scores.logp.item() == pytest.approx(-math.log(2), rel=2**-22)
    assert logits.tolist() == [[-0.5, 0.5]]


@pytest.mark.parametrize(
    ("dtype", "V", "softmax"),
    [
        (torch.bfloat16, 7, "plain"),
        (torch.bfloat16, 4999, "plain"),
        (torch.bfloat16, 4999, "scaled"),
        (torch.bfloat16, 4999, "per token"),
        (torch.bfloat16, 32000, "plain"),
        (torch.float16, 4999, "per token"),
        (torch.float32, 4999, "plain"),
        (torch.float32, 18504, "plain"),
    ],
)
def test_every_bit_is_that_of_two_launches(device, dtype, V, softmax):
    wide, ids = rows_of(device, dtype, V)
    assert_bits_of_two_launches(wide, ids, V, SOFTMAXES[softmax])
    assert wide[:, :V].any(-1).all()


def test_every_bit_of_a_row_that_fills_a_multiprocessor_is_that_of_two_launches(device):
    tiles = score_and_dlogits_tiles(LONG, 2)
    assert tiles["SUMMED_TILES"] == 7
    for at_once in ("SUMMED_TILES", "WRITTEN_TILES"):
        assert 2 * tiles["BLOCK_V"] * tiles[at_once] < LONG
        assert LONG % (tiles["BLOCK_V"] * tiles[at_once]) > tiles["BLOCK_V"]
    wide, ids = rows_of(device, torch.bfloat16, LONG)
    assert_bits_of_two_launches(wide, ids, LONG)


def test_the_order_of_a_row_s_sum_is_that_of_the_launch_that_scores_alone():
    for V in (37, 32000, 128256):
        for itemsize in (2, 4):
            tiles = score_and_dlogits_tiles(V, itemsize)
            assert {name: tiles[name] for name in ("BLOCK_V", "num_warps")} == vocabulary_tiles(V, itemsize)


# Extremes


def test_rows_that_are_read_again_have_the_bits_of_two_launches(device):
    wide, ids = rows_of(device, torch.bfloat16, 4999)
    wide[0, 100], wide[1, 200:4000], wide[2, 0], wide[3, 17] = 500.0, -math.inf, math.nan, math.inf
    ids[0] = 5
    scores = assert_bits_of_two_launches(wide, ids, 4999)
    assert scores.logp.isfinite().tolist() == [True, True, False, False, True]


def test_an_id_outside_the_vocabulary_makes_its_row_nan(device):
    wide, ids = rows_of(device, torch.float32, 37)
    ids[2], ids[4] = 37, -1
    scores = assert_bits_of_two_launches(wide, ids, 37)
    assert scores.logp.isnan().tolist() == [False, False, True, False, True]


def test_no_row_is_no_launch(device):
    wide, ids = rows_of(device, torch.float32, 37)
    scores = autograd.score_and_write_dlogits_(wide[:0, :37], ids[:0], Softmax())
    assert [len(values) for values in scores] == [0, 0, 0, 0]


# One launch or two


def kernels_of(monkeypatch: pytest.MonkeyPatch, softmax: Softmax, device: torch.device) -> list[str]:
    wide, ids = rows_of(device, torch.bfloat16, 37)
    with launches(monkeypatch) as seen:
        autograd.score_and_write_dlogits_(wide[:, :37], ids, softmax)
    return [name for name in seen if name.endswith("_kernel")]


def test_a_softcap_has_two_launches_because_its_arithmetic_takes_longer_than_a_read(device, monkeypatch):
    two = ["token_logp_forward_kernel", "token_logp_backward_kernel"]
    assert kernels_of(monkeypatch, Softmax(), device) == ["score_and_dlogits_kernel"]
    assert kernels_of(monkeypatch, Softmax(softcap=5.0), device) == two
    assert_bits_of_two_launches(*rows_of(device, torch.bfloat16, 37), 37, Softmax(softcap=5.0))


def test_two_launches_are_kept_where_too_few_rows_fit_into_the_cache(device, monkeypatch):
    monkeypatch.setattr(epilogue, "num_programs", lambda logits: 0)
    assert "score_and_dlogits_kernel" not in kernels_of(monkeypatch, Softmax(), device)
    assert_bits_of_two_launches(*rows_of(device, torch.bfloat16, 37), 37)


GIVEN = TokenLogp(torch.full((4, 6), -4.0))
FORWARD, BACKWARD, BOTH = "token_logp_forward_kernel", "token_logp_backward_kernel", "score_and_dlogits_kernel"


@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [BOTH]),
        ({"workspace_bytes": 40 * 4 * 8}, [BOTH, BOTH]),
        ({"drop_clamped": True}, [FORWARD, BACKWARD]),
        ({"fp32_logits": True}, [BOTH]),
    ],
    ids=["one chunk", "two chunks", "drop_clamped", "fp32_logits"],
)
def test_a_chunk_of_a_head_has_one_launch(monkeypatch, frozen, options, expected):
    batch = head_batch("cpu", bias=False)
    batch.tokens.loss_mask[:] = torch.arange(24).view(4, 6) < 16
    policy = LMHead(batch.hidden.requires_grad_(), batch.weight.requires_grad_(not frozen), **options)
    with launches(monkeypatch) as seen:
        loss_of("grpo", policy, GIVEN, batch.tokens, impl="triton").loss.backward()
    if frozen and options.get("drop_clamped"):  # no product waits for a coefficient, so nothing is dropped
        expected = [BOTH]
    assert [name for name in seen if name in (FORWARD, BACKWARD, BOTH)] == expected


def test_rows_of_a_reference_in_the_chunk_have_two(monkeypatch):
    batch = head_batch("cpu", bias=False)
    weight = batch.weight.requires_grad_()
    with launches(monkeypatch) as seen:
        policy, reference = LMHead(batch.hidden.requires_grad_(), weight), LMHead(batch.ref_hidden, weight)
        loss_of("dpo", policy, reference, batch.tokens, impl="triton").loss.backward()
    assert [name for name in seen if name in (FORWARD, BACKWARD, BOTH)] == [FORWARD, BACKWARD]


@pytest.mark.parametrize("workspace_bytes", [None, 40 * 4 * 8])
def test_a_head_s_loss_and_gradients_are_those_of_two_launches(device, objective, monkeypatch, workspace_bytes):
    results = []
    for programs in (2, 0):
        monkeypatch.setattr(epilogue, "num_programs", lambda logits, programs=programs: programs)
        batch = head_batch(device)
        leaves = [t.requires_grad_() for t in (batch.hidden, batch.weight, batch.bias)]
        policy = LMHead(*leaves, workspace_bytes=workspace_bytes)
        out = loss_of(objective, policy, TokenLogp(GIVEN.logp.to(device)), batch.tokens, impl="triton")
        results.append([out.loss, *torch.autograd.grad(out.loss, leaves)])
    assert all(map(torch.equal, *results))


def test_a_policy_scored_ahead_has_the_log_ratio_0_in_its_loss(device):
    batch = head_batch(device)
    policy = LMHead(batch.hidden.requires_grad_(), batch.weight.requires_grad_(), batch.bias)
    with torch.no_grad():
        ahead = loss_of("grpo", policy, TokenLogp(GIVEN.logp.to(device)), batch.tokens, impl="triton").logp
    out = loss_of("grpo", policy, TokenLogp(ahead), batch.tokens, impl="triton")
    assert torch.equal(out.logp, ahead)
    assert ahead[batch.tokens.loss_mask].all()
