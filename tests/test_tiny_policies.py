"""Tiny policies: the task, log-probs, samples and the supervised start."""

import math

import pytest
import torch

from humanline_fused.tiny import Demonstrations, Parameters, Policies, Sorting, fine_tune, held_out_prompts
from humanline_fused.tiny.policies import chosen_logp, gumbel, rows

TASK = Sorting(digits=3, alphabet=4)
FILLER = Sorting(digits=2, alphabet=3, filler=2)
POLICIES = Policies(TASK, hidden=16)
STANDARD_ERRORS = 5
"""A Monte-Carlo frequency is further away once in two million times."""
ROUNDING = 100 * torch.finfo(torch.float32).eps
"""Room for float32 sums of some tens of terms around 1, in another order."""


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def spread(policies: Policies, *seeds: int) -> Parameters:
    """Return random policies whose distributions are far from uniform."""
    made = policies.initial(seeds)
    return made | {"output": 8 * made["output"]}


def same(a: Parameters, b: Parameters) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


# Task


def test_a_right_answer_has_the_prompts_digits_in_ascending_order():
    prompt = torch.tensor([[[3, 1, 1]]])
    for answer, reward in (([1, 1, 3], 1.0), ([3, 1, 1], 0.0), ([1, 3, 1], 0.0), ([1, 2, 3], 0.0)):
        assert TASK.rewards(prompt, torch.tensor([[answer]])).item() == reward
    assert TASK.answers(prompt).tolist() == [[[1, 1, 3]]]


def test_free_tokens_after_the_digits_do_not_change_the_reward():
    free, end = FILLER.alphabet, FILLER.end
    prompt = torch.tensor([[[2, 0]]]).expand(1, 3, 2)
    answers = torch.tensor([[[0, 2, end, 0, 0], [0, 2, free, free, free], [0, 2, 1, end, 1]]])
    assert FILLER.rewards(prompt, answers).tolist() == [[1.0, 1.0, 1.0]]


def test_tokens_count_up_to_the_first_end():
    end = FILLER.end
    answers = torch.tensor([[[0, 1, end, end, 0], [0, 1, 2, 2, 2], [end, 0, 0, 0, 0]]])
    assert FILLER.loss_mask(answers).sum(-1).tolist() == [[3, 5, 1]]
    assert TASK.loss_mask(torch.zeros(1, 1, 3, dtype=torch.long)).all()


def test_a_right_answer_ends_at_once_if_answers_have_an_end():
    end = FILLER.end
    assert FILLER.answers(torch.tensor([[[2, 1]]])).tolist() == [[[1, 2, end, end, end]]]


# Policies


def test_a_policy_has_as_many_parameters_as_it_says():
    for policies in (POLICIES, Policies(FILLER, hidden=7)):
        assert policies.num_parameters == sum(value[0].numel() for value in policies.initial([0]).values())


def test_a_policys_parameters_depend_on_its_seed_alone():
    assert same(rows(POLICIES.initial([3, 4]), torch.tensor([1])), POLICIES.initial([4]))


def test_logits_do_not_see_their_own_and_later_tokens():
    parameters = spread(POLICIES, 0)
    features = TASK.encode(torch.tensor([[[3, 0, 2]]]))
    first = POLICIES.logits(parameters, features, torch.tensor([[[1, 2, 3]]]))[0, 0]
    for position in range(TASK.length):
        answers = torch.tensor([[[1, 2, 3]]])
        answers[..., position:] = 0
        changed = POLICIES.logits(parameters, features, answers)[0, 0]
        # The sum over earlier tokens is taken as (earlier + own) − own: only its rounding sees the own token.
        torch.testing.assert_close(first[: position + 1], changed[: position + 1], rtol=0, atol=ROUNDING)
        assert position == TASK.length - 1 or (first[position + 1] - changed[position + 1]).abs().max() > 0.01


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_samples_have_the_policys_distribution_at_their_temperature(temperature):
    task = Sorting(digits=2, alphabet=2)
    policies, number = Policies(task, hidden=8), 20_000
    parameters = spread(policies, 0)
    prompts = torch.tensor([[1, 0]]).expand(1, number, 2)
    noise = gumbel(generators(0), (number, task.length, task.vocabulary))
    drawn = policies.sample(parameters, task.encode(prompts), noise, torch.tensor([temperature]))
    every = torch.cartesian_prod(torch.arange(2), torch.arange(2))[None]
    logits = policies.logits(parameters, task.encode(prompts[:, :4]), every)
    probability = chosen_logp(logits / temperature, every).sum(-1).exp()[0]
    frequency = (drawn[0, :, None] == every[0]).all(-1).double().mean(0)
    deviation = (probability * (1 - probability) / number).sqrt()
    assert ((frequency - probability).abs() <= STANDARD_ERRORS * deviation).all()


def test_the_expected_reward_is_the_frequency_of_right_samples():
    task = Sorting(digits=2, alphabet=2)
    policies, number = Policies(task, hidden=8), 20_000
    parameters = spread(policies, 1)
    prompts = task.prompts(generators(2), number)
    noise = gumbel(generators(3), (number, task.length, task.vocabulary))
    drawn = policies.sample(parameters, task.encode(prompts), noise, torch.ones(1))
    expected = policies.expected_reward(parameters, prompts).item()
    deviation = math.sqrt(expected * (1 - expected) / number)
    assert abs(task.rewards(prompts, drawn).mean().item() - expected) <= STANDARD_ERRORS * deviation


def test_an_initial_policy_learns_until_it_reaches_a_reward():
    how = Demonstrations(until=0.1)
    start = fine_tune(POLICIES, [5, 6], how)
    assert (POLICIES.expected_reward(start, held_out_prompts(POLICIES, [5, 6])) >= 0.1).all()
    again = fine_tune(POLICIES, [5, 6], how)
    assert same(start, again)


def test_a_reward_that_is_not_reached_is_an_error():
    with pytest.raises(ValueError, match=r"until: expected a reward that 5 steps reach, got 0\.9: seeds \[5\] are at"):
        fine_tune(POLICIES, [5], Demonstrations(until=0.9, max_steps=5))
