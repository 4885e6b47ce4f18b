"""Bad input is refused before any computation, with the expected and the given value."""

from dataclasses import replace

import pytest
import torch

from humanline_fused import Logits, TokenLogp, choose_impl, kto_kl, shift_targets, token_log_ratio, token_logp
from tests.inputs import loss_of, random_batch

CPU = torch.device("cpu")


def test_a_bare_tensor_is_refused_as_scores(objective):
    batch = random_batch(CPU)
    expected = r"policy: expected Logits\(\.\.\.\), LMHead\(\.\.\.\) or TokenLogp\(\.\.\.\), got float32 \[4, 5, 37\]"
    with pytest.raises(TypeError, match=expected):
        loss_of(objective, batch.logits, Logits(batch.ref_logits), batch)


def test_logits_that_do_not_fit_the_ids_are_refused(objective):
    batch = random_batch(CPU)
    with pytest.raises(ValueError, match=r"policy logits: expected .* \[4, 5, 37\] on cpu, got float32 \[4, 4, 37\]"):
        loss_of(objective, Logits(batch.logits[:, 1:]), Logits(batch.ref_logits), batch)


def test_logits_without_a_vocabulary_axis_are_refused():
    batch = random_batch(CPU)
    with pytest.raises(ValueError, match=r"scores: expected Logits of shape \[B, T, V\], got float32 \[4, 5\]"):
        token_logp(Logits(batch.logits[..., 0]), batch.target_ids, batch.loss_mask)


def test_two_vocabularies_are_refused(objective):
    batch = random_batch(CPU)
    with pytest.raises(ValueError, match=r"expected one vocabulary size, got \(37, 36\)"):
        loss_of(objective, Logits(batch.logits), Logits(batch.ref_logits[..., 1:]), batch)


def test_integer_logits_are_refused():
    batch = random_batch(CPU)
    with pytest.raises(TypeError, match=r"scores logits: expected bfloat16 or .* got int64"):
        token_logp(Logits(batch.logits.long()), batch.target_ids, batch.loss_mask)


def test_a_mask_that_is_not_bool_is_refused():
    batch = random_batch(CPU)
    with pytest.raises(TypeError, match=r"loss_mask: expected bool \[4, 5\] on cpu, got int64 \[4, 5\]"):
        token_logp(Logits(batch.logits), batch.target_ids, batch.loss_mask.long())


def test_ids_that_are_not_integers_are_refused():
    batch = random_batch(CPU)
    with pytest.raises(TypeError, match=r"target_ids: expected int64 or int32 \[B, T\], got float32 \[4, 5\]"):
        token_logp(Logits(batch.logits), batch.target_ids.float(), batch.loss_mask)


def test_tensors_on_two_devices_are_refused():
    batch = random_batch(CPU)
    with pytest.raises(ValueError, match=r"reference logp: expected .* on cpu, got float32 \[4, 5\] on meta"):
        token_log_ratio(
            Logits(batch.logits), TokenLogp(torch.empty(4, 5, device="meta")), batch.target_ids, batch.loss_mask
        )


@pytest.mark.parametrize("illegal", [-1, 37])
def test_an_id_outside_the_vocabulary_is_refused_where_the_mask_counts(objective, illegal):
    batch = random_batch(CPU)
    batch.target_ids[1, 2], batch.loss_mask[1, 2] = illegal, True
    with pytest.raises(ValueError, match=rf"expected ids in \[0, 37\) where .* got {illegal} at \[1, 2\] \(1 such\)"):
        loss_of(objective, Logits(batch.logits), Logits(batch.ref_logits), batch)


def test_an_id_outside_the_vocabulary_of_the_reference_alone_is_refused():
    batch = random_batch(CPU)
    batch.target_ids[1, 2], batch.loss_mask[1, 2] = 37, True
    logp = TokenLogp(torch.zeros(4, 5))
    with pytest.raises(ValueError, match="got 37 at"):
        token_log_ratio(logp, Logits(batch.ref_logits), batch.target_ids, batch.loss_mask)


def test_a_clamp_given_as_a_pair_of_numbers_is_refused():
    batch = random_batch(CPU)
    with pytest.raises(TypeError, match=r"clamp: expected HumanlineClamp\(\.\.\.\) or None, got tuple \(-1\.5, 1\.5\)"):
        loss_of("dpo", Logits(batch.logits), Logits(batch.ref_logits), batch, clamp=(-1.5, 1.5))


def test_ids_that_are_not_a_tensor_are_refused_by_every_operation(objective):
    batch = replace(random_batch(CPU), target_ids=[[1]])
    with pytest.raises(TypeError, match=r"target_ids: expected int64 or int32 \[B, T\], got list \[\[1\]\]"):
        loss_of(objective, Logits(batch.logits), Logits(batch.ref_logits), batch)
    with pytest.raises(TypeError, match="target_ids: expected"):
        kto_kl(Logits(batch.logits), Logits(batch.ref_logits), batch.target_ids, batch.loss_mask)
    with pytest.raises(TypeError, match="input_ids: expected int64 or int32"):
        shift_targets(batch.logits[..., 0], batch.loss_mask)


# Choice of the implementation


def test_an_unknown_impl_is_refused():
    batch = random_batch(CPU)
    with pytest.raises(ValueError, match="impl: expected 'auto', 'triton' or 'eager', got 'cuda'"):
        loss_of("dpo", Logits(batch.logits), Logits(batch.ref_logits), batch, impl="cuda")


def test_impl_triton_refuses_float64_and_impl_auto_computes_it_in_eager():
    batch = random_batch(CPU, dtype=torch.float64)
    with pytest.raises(RuntimeError, match=r"impl='triton' cannot run here: .* float64"):
        token_logp(Logits(batch.logits), batch.target_ids, batch.loss_mask, impl="triton")
    assert token_logp(Logits(batch.logits), batch.target_ids, batch.loss_mask).dtype == torch.float64


def test_impl_triton_without_a_gpu_is_refused_and_auto_explains_its_choice_of_eager(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(RuntimeError, match="impl='triton' cannot run here: Triton needs a GPU"):
        choose_impl("triton", CPU, torch.bfloat16)
    choice = choose_impl("auto", CPU, torch.bfloat16)
    assert choice.impl == "eager"
    assert "needs a GPU" in choice.why


def test_auto_never_runs_the_interpreter(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert choose_impl("auto", CPU, torch.float32).impl == "eager"
    assert choose_impl("triton", CPU, torch.float32).impl == "triton"


# shift_targets


def test_targets_move_one_to_the_left_and_the_last_column_never_counts():
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    mask = torch.tensor([[True, True, True], [False, True, False]])
    targets, loss_mask = shift_targets(ids, mask)
    assert targets[:, :-1].tolist() == [[2, 3], [5, 6]]
    assert loss_mask.tolist() == [[True, True, False], [True, False, False]]
    assert mask.all(-1).tolist() == [True, False], "the caller's mask is left as it was"


def test_shifted_targets_score_as_shifted_logits_do():
    batch = random_batch(CPU)
    targets, loss_mask = shift_targets(batch.target_ids, batch.loss_mask)
    ours = token_logp(Logits(batch.logits), targets, loss_mask)
    theirs = token_logp(Logits(batch.logits[:, :-1]), batch.target_ids[:, 1:], batch.loss_mask[:, 1:])
    assert torch.equal(ours[:, :-1], theirs)
    assert (ours[:, -1] == 0).all()
