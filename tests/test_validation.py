"""Bad input is refused before any computation, with the expected and the given value."""

import math
import re
from dataclasses import replace

import pytest
import torch

from humanline_fused import (
    HumanlineClamp,
    HumanlineSampling,
    LMHead,
    Logits,
    TokenLogp,
    choose_impl,
    kto_kl,
    shift_targets,
    token_log_ratio,
    token_logp,
)
from humanline_fused.validation import values
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


def test_tensors_on_another_device_are_refused():
    batch = random_batch(CPU)
    with pytest.raises(TypeError, match=r"reference logp: expected .* on cpu, got float32 \[4, 5\] on meta"):
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


# Tensors without plain values


def sparse(logits):
    return logits.to_sparse()


def nested(logits):
    return torch.nested.nested_tensor(list(logits), layout=torch.jagged)


def meta(logits):
    return logits.to("meta")


def float8(logits):
    return logits.to(torch.float8_e4m3fn)


def complex64(logits):
    return logits.to(torch.complex64)


@pytest.mark.parametrize("form", [sparse, nested, meta, float8, complex64])
def test_a_tensor_of_another_kind_is_refused_by_the_name_of_its_argument(objective, form):
    batch = random_batch(CPU)
    with pytest.raises(TypeError, match=r"^policy.*: expected .*, got .*(sparse|nested|meta|float8|complex)"):
        loss_of(objective, Logits(form(batch.logits)), Logits(batch.ref_logits), batch)
    with pytest.raises(TypeError, match=r"^reference logp: expected .*, got .*(sparse|nested|meta|float8|complex)"):
        loss_of(objective, Logits(batch.logits), TokenLogp(form(batch.logits[..., 0])), batch)
    with pytest.raises(TypeError, match=r"^policy.*: expected .*, got .*(sparse|nested|meta|float8|complex)"):
        loss_of(objective, LMHead(form(batch.logits), torch.zeros(37, 37)), Logits(batch.ref_logits), batch)
    with pytest.raises(TypeError, match=r"^policy.*: expected .*, got .*(sparse|nested|meta|float8|complex)"):
        loss_of(objective, LMHead(batch.logits, form(torch.zeros(37, 37))), Logits(batch.ref_logits), batch)


@pytest.mark.parametrize("name", ["target_ids", "loss_mask", "advantages"])
@pytest.mark.parametrize("form", [sparse, nested, meta])
def test_ids_mask_and_advantages_of_another_kind_are_refused_too(name, form):
    batch = random_batch(CPU)
    batch = replace(batch, advantages=batch.advantages[:, None].expand(4, 5).contiguous())
    with pytest.raises(TypeError, match=rf"^{name}: expected .*, got .*(sparse|nested|meta)"):
        loss_of(
            "grpo", Logits(batch.logits), Logits(batch.ref_logits), replace(batch, **{name: form(vars(batch)[name])})
        )


# Numbers, and tensors in their place


@pytest.mark.parametrize("number", [10**400, -(10**400), math.nan, math.inf])
@pytest.mark.parametrize("name", ["beta", "epsilon", "num_items_in_batch"])
def test_a_number_that_no_float_holds_is_refused_by_name(name, number):
    batch = random_batch(CPU)
    with pytest.raises(ValueError, match=f"^{name}: expected a finite number .* got "):
        loss_of("grpo", Logits(batch.logits), Logits(batch.ref_logits), batch, **{name: number})


@pytest.mark.parametrize("name", ["temperature", "softcap", "scale"])
def test_a_softmax_of_a_number_that_no_float_holds_is_refused_by_name(name):
    batch = random_batch(CPU)
    with pytest.raises(ValueError, match=f"^scores {name}: expected a finite number > 0, got 1000"):
        token_logp(Logits(batch.logits, **{name: 10**400}), batch.target_ids, batch.loss_mask)


def test_bounds_and_sampling_settings_that_no_float_holds_are_refused_by_name():
    with pytest.raises(ValueError, match=r"^log_epsilon_R: expected a number of nats, got 1000"):
        HumanlineClamp(-1.5, 10**400)
    with pytest.raises(ValueError, match=r"^gamma_P: expected a finite number >= 0, got 1000"):
        HumanlineSampling(gamma_P=10**400)
    with pytest.raises(ValueError, match=r"^maxima: expected M_P >= 1, got 1000"):
        HumanlineSampling(maxima=(10**400, 1.0))


@pytest.mark.parametrize("number", [1e39, 1e-39])
def test_a_number_that_float32_does_not_hold_is_refused_with_the_reason(number):
    batch = random_batch(CPU)
    reason = re.escape(f"got {number}, which float32 does not hold")
    with pytest.raises(ValueError, match=f"^beta: expected a finite number in .* {reason}"):
        loss_of("dpo", Logits(batch.logits), Logits(batch.ref_logits), batch, beta=number)
    with pytest.raises(ValueError, match=f"^scores temperature: expected a finite number > 0, {reason}"):
        token_logp(Logits(batch.logits, temperature=number), batch.target_ids, batch.loss_mask)


def test_numbers_at_the_ends_of_float32_are_legal():
    batch, ends = random_batch(CPU), torch.finfo(torch.float32)
    for beta in (0.0, ends.tiny, 1, ends.max):
        loss_of("dpo", Logits(batch.logits), Logits(batch.ref_logits), batch, beta=beta)


TENSORS = [("kto", {"kl": number}, "kl") for number in (-0.5, math.inf)] + [
    ("grpo", {"num_items_in_batch": number}, "num_items_in_batch") for number in (0.0, -3.0, math.nan, math.inf)
]


def with_tensors(objective, setting, batch, impl):
    settings = {name: torch.tensor(value, device=batch.logits.device) for name, value in setting.items()}
    return loss_of(objective, Logits(batch.logits), Logits(batch.ref_logits), batch, impl=impl, **settings).loss


@pytest.mark.parametrize(("objective", "setting", "name"), TENSORS)
def test_a_tensor_is_checked_as_a_number_is(objective, setting, name):
    with pytest.raises(ValueError, match=rf"^{name}: expected .*, got {setting[name]}"):
        with_tensors(objective, setting, random_batch(CPU), "eager")


@pytest.mark.parametrize(("objective", "setting", "name"), TENSORS)
def test_where_that_check_would_wait_the_loss_is_nan(device, impl, objective, setting, name, monkeypatch):
    monkeypatch.setattr(values, "may_look_at", lambda tensor: False)
    assert with_tensors(objective, setting, random_batch(device), impl).isnan()


def with_temperature(illegal, device, *, counts):
    """Return logits with that temperature at tokens that do not count, or at the first that does; and its index."""
    batch = random_batch(device)
    temperature = torch.ones(batch.target_ids.shape, device=device)
    where = batch.loss_mask.nonzero()[:1] if counts else (~batch.loss_mask).nonzero()
    temperature[where.unbind(1)] = illegal
    return (Logits(batch.logits, temperature=temperature), batch.target_ids, batch.loss_mask), where.unbind(1)


ILLEGAL = [0.0, -1.0, math.nan, math.inf]


@pytest.mark.parametrize("illegal", ILLEGAL)
def test_a_temperature_of_a_token_that_counts_is_checked_as_a_number_is(illegal):
    arguments, _ = with_temperature(illegal, CPU, counts=True)
    with pytest.raises(ValueError, match=rf"^scores temperature: expected finite numbers > 0, got {illegal}"):
        token_logp(*arguments)


@pytest.mark.parametrize("illegal", ILLEGAL)
def test_where_that_check_would_wait_the_token_s_log_prob_is_nan(device, impl, illegal, monkeypatch):
    monkeypatch.setattr(values, "may_look_at", lambda tensor: False)
    arguments, where = with_temperature(illegal, device, counts=True)
    logp = token_logp(*arguments, impl=impl)
    assert logp[where].isnan().all()
    assert logp.isnan().sum() == 1


@pytest.mark.parametrize("illegal", ILLEGAL)
def test_a_temperature_of_a_token_that_does_not_count_is_never_used(device, impl, illegal):
    arguments, _ = with_temperature(illegal, device, counts=False)
    assert token_logp(*arguments, impl=impl).isfinite().all()


def test_a_divisor_below_1_is_that_divisor(device, impl):
    # Tokens of a step, over micro-batches and ranks: one token in four micro-batches.
    batch = random_batch(device)
    losses = [
        loss_of("grpo", Logits(batch.logits), Logits(batch.ref_logits), batch, impl=impl, num_items_in_batch=items).loss
        for items in (1.0, 0.25, torch.tensor(0.25, device=device))
    ]
    assert (losses[1] == losses[2]) & (losses[1] == 4 * losses[0])


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


@pytest.mark.parametrize("bounds", [[0], [0, 0], [0, 0, 0]])
def test_a_packed_row_without_tokens_has_no_targets(bounds):
    ids, mask = torch.zeros(1, 0, dtype=torch.long), torch.zeros(1, 0, dtype=torch.bool)
    targets, loss_mask = shift_targets(ids, mask, torch.tensor(bounds))
    assert targets.shape == loss_mask.shape == (1, 0)


def test_shifted_targets_score_as_shifted_logits_do():
    batch = random_batch(CPU)
    targets, loss_mask = shift_targets(batch.target_ids, batch.loss_mask)
    ours = token_logp(Logits(batch.logits), targets, loss_mask)
    theirs = token_logp(Logits(batch.logits[:, :-1]), batch.target_ids[:, 1:], batch.loss_mask[:, 1:])
    assert torch.equal(ours[:, :-1], theirs)
    assert (ours[:, -1] == 0).all()
