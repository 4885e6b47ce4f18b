"""Synced references: in-place copy and look-ahead."""

import copy

import pytest
import torch
from torch import nn

from humanline_fused.reference import CopyReference, LookaheadReference, sync_reference_
from tests.tiny_model import tiny_model


def network(width: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, width), nn.BatchNorm1d(width))


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in [*model.named_parameters(), *model.named_buffers()]}


# The copy


def test_after_a_sync_the_reference_equals_the_policy_and_shares_no_storage():
    policy, reference = tiny_model(0), tiny_model(1)
    before = {name: p.data_ptr() for name, p in reference.named_parameters()}
    sync_reference_(reference, policy)
    for name, parameter in reference.named_parameters():
        assert torch.equal(parameter, policy.get_parameter(name))
        assert parameter.data_ptr() == before[name] != policy.get_parameter(name).data_ptr()


def test_a_later_update_of_the_policy_does_not_reach_the_reference():
    policy, reference = network(), network()
    sync_reference_(reference, policy)
    synced = weights(reference)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 1
    assert all(torch.equal(now, synced[name]) for name, now in weights(reference).items())


def test_buffers_are_copied_too():
    policy, reference = network(), network()
    policy(torch.randn(5, 2))
    sync_reference_(reference, policy)
    assert torch.equal(reference[1].running_mean, policy[1].running_mean)
    assert reference[1].num_batches_tracked == 1


def test_the_reference_keeps_its_own_dtype():
    policy, reference = network(), network().bfloat16()
    sync_reference_(reference, policy)
    assert torch.equal(reference[0].weight, policy[0].weight.bfloat16())


@pytest.mark.parametrize("wrapper", ["module", "_orig_mod", "_checkpoint_wrapped_module"])
def test_the_prefixes_of_wrappers_do_not_matter(wrapper: str):
    policy, reference = network(), network()
    wrapped = nn.Module()
    wrapped.add_module(wrapper, policy)
    sync_reference_(reference, wrapped)
    assert torch.equal(reference[0].weight, policy[0].weight)


def test_parameters_are_paired_by_name_and_not_by_order():
    policy = nn.ModuleDict({name: nn.Linear(2, 2) for name in ("a", "b")})
    reference = nn.ModuleDict({name: nn.Linear(2, 2) for name in ("b", "a")})
    sync_reference_(reference, policy)
    assert all(torch.equal(parameter, reference.get_parameter(name)) for name, parameter in policy.named_parameters())


def test_a_parameter_without_an_element_has_no_storage_to_share():
    policy, reference = nn.ParameterList([torch.empty(0)]), nn.ParameterList([torch.empty(0)])
    sync_reference_(reference, policy)


@pytest.mark.parametrize("side", ["policy", "reference"])
def test_a_name_on_one_side_alone_is_refused(side: str):
    models = {name: nn.Linear(2, 2, bias=name == side) for name in ("policy", "reference")}
    with pytest.raises(ValueError, match=f"have the same parameters: only the {side} has bias$"):
        sync_reference_(**models)


def test_different_names_are_refused_and_named_on_both_sides():
    policy = nn.ModuleDict({"ours": nn.Linear(2, 2, bias=False)})
    reference = nn.ModuleDict({"theirs": nn.Linear(2, 2, bias=False)})
    with pytest.raises(ValueError, match=r"only the policy has ours\.weight; only the reference has theirs\.weight"):
        sync_reference_(reference, policy)


def test_different_shapes_are_refused_with_both_and_nothing_is_copied():
    policy, reference = network(4), network(3)
    before = weights(reference)
    with pytest.raises(ValueError, match=r"0\.weight \(\[3, 2\] in the reference, \[4, 2\] in the policy\)"):
        sync_reference_(reference, policy)
    assert all(torch.equal(now, before[name]) for name, now in weights(reference).items())


def test_a_reference_that_is_an_alias_of_the_policy_is_refused():
    policy = network()
    reference = copy.copy(policy)
    with pytest.raises(ValueError, match=r"shares the policy's: 0\.bias"):
        sync_reference_(reference, policy)


def test_a_reference_that_shares_one_parameter_under_another_name_is_refused():
    policy, reference = network(), network()
    reference[1].weight = policy[1].bias
    with pytest.raises(ValueError, match=r"shares the policy's: 1\.weight"):
        sync_reference_(reference, policy)


def test_the_copy_is_taken_at_steps_0_k_2k_and_never_when_frozen():
    for sync_every, expected in ((1, [0, 1, 2, 3, 4, 5]), (2, [0, 2, 4]), (4, [0, 4]), (None, [])):
        policy, reference = nn.Linear(1, 1), nn.Linear(1, 1)
        copier = CopyReference(lambda step: [], reference, sync_every)
        synced = []
        for step in range(6):
            with torch.no_grad():
                policy.bias.fill_(float(step))
            copier.before_optimizer_step(step, policy)
            if torch.equal(reference.bias, policy.bias):
                synced.append(step)
        assert synced == expected


# The look-ahead


def lookahead(sync_every: int) -> tuple[LookaheadReference, list[int]]:
    scored: list[int] = []

    def score(step: int) -> list[dict[str, torch.Tensor]]:
        scored.append(step)
        return [{"ref_logp": torch.tensor(float(step))}]

    return LookaheadReference(score, sync_every), scored


def test_the_batches_of_steps_t_plus_1_to_t_plus_k_are_scored_at_the_start_of_step_t():
    reference, scored = lookahead(3)
    timeline = []
    for step in range(7):
        (scores,) = reference.scores(step, last_step=6)
        assert scores["ref_logp"] == step
        timeline.append(scored.copy())
        scored.clear()
    assert timeline == [[0, 1, 2, 3], [], [], [4, 5, 6], [], [], []]


def test_every_batch_is_scored_once_and_none_after_the_last_step():
    reference, scored = lookahead(4)
    for step in range(6):
        reference.scores(step, last_step=5)
    assert scored == [0, 1, 2, 3, 4, 5]
    assert not reference.pending


def test_a_restored_look_ahead_continues_with_its_stored_scores():
    for last_step in (9, 2):
        reference, _ = lookahead(3)
        for step in range(2):
            reference.scores(step, last_step)
        restored, scored = lookahead(3)
        restored.load_state_dict(reference.state_dict(), step=2, last_step=last_step)
        assert restored.scores(2, last_step)[0]["ref_logp"] == 2
        assert scored == []


def test_a_step_without_scores_is_an_error_that_lists_the_scored_steps():
    reference, _ = lookahead(3)
    reference.scores(0, last_step=2)
    with pytest.raises(ValueError, match=r"no reference scores were kept for step 5 \(kept: \[1, 2\]\)"):
        reference.scores(5, last_step=9)


def test_a_sync_interval_other_than_the_checkpoints_is_refused():
    reference, _ = lookahead(3)
    with pytest.raises(ValueError, match=r"expected sync_every=3.*got 4"):
        lookahead(4)[0].load_state_dict(reference.state_dict(), step=0, last_step=9)


@pytest.mark.parametrize(
    ("last_step", "stopped", "refused"), [(4, 1, False), (4, 3, False), (4, 4, True), (4, 5, True), (2, 3, True)]
)
def test_a_run_can_be_extended_only_if_it_is_scored_up_to_the_next_sync(last_step: int, stopped: int, refused: bool):
    reference, _ = lookahead(3)
    for step in range(stopped):
        reference.scores(step, last_step)
    longer, _ = lookahead(3)
    if refused:
        end = last_step + 1
        with pytest.raises(ValueError, match=rf"planned to end at step {end} .*expected max_steps <= {end}, got 10"):
            longer.load_state_dict(reference.state_dict(), stopped, last_step=9)
        return
    longer.load_state_dict(reference.state_dict(), stopped, last_step=9)
    assert [longer.scores(step, last_step=9)[0]["ref_logp"] for step in range(stopped, 10)] == [*range(stopped, 10)]
