"""Experiments on perception: humanline sampling of tiny policies, perceived outcomes, a γ for each person."""

import math
from dataclasses import replace

import pytest
import torch

from benchmarks.paper import equal, perception, personal, weights
from benchmarks.paper.protocol import USUAL
from benchmarks.paper.run_rows import Run
from benchmarks.results import write
from humanline_fused import HumanlineSampling, TokenLogp, token_log_ratio
from humanline_fused.perception.prospect import GAMMA_GAINS, GAMMA_LOSSES, capacity
from humanline_fused.tiny import Demonstrations, Policies, Setting, Sorting, Trainings, fine_tune, train
from humanline_fused.tiny.losses import kept_gradient

SEEDS = [0, 1]
POLICIES = Policies(Sorting(digits=3, alphabet=4), hidden=16)
SAMPLING = Setting("sampling", learning_rate=3e-3, gamma_P=0.5, gamma_R=0.01, sync_every=5)


# Tiny policies


@pytest.fixture(scope="module")
def start():
    return fine_tune(POLICIES, SEEDS, Demonstrations(until=0.3))


@pytest.mark.parametrize("loss", ["dpo", "kto", "grpo"])
def test_sampling_rejects_tokens_of_its_own_setting_only(start, loss):
    trainings = Trainings(loss, policies=POLICIES, steps=8, evaluate_every=8)
    plain = Setting("plain", learning_rate=3e-3)
    both = train(trainings, [plain, SAMPLING], SEEDS, start)
    alone = [train(trainings, [setting], SEEDS, start) for setting in (plain, SAMPLING)]
    assert both.unclamped[0].tolist() == [1.0, 1.0]
    assert ((both.unclamped[1] > 0) & (both.unclamped[1] < 1)).all()
    torch.testing.assert_close(both.reward[:1], alone[0].reward)
    torch.testing.assert_close(both.reward[1:], alone[1].reward)


def test_tiny_policies_reject_the_tokens_that_the_losses_reject():
    generator = torch.Generator().manual_seed(0)
    logp, ref_logp = (-torch.rand(3, 6, 5, generator=generator) * 4 for _ in range(2))
    mask = torch.rand(3, 6, 5, generator=generator) < 0.8
    draws = torch.rand(3, 2, 6, 5, generator=generator, dtype=torch.float64).log() / 0.5
    together = logp.clone().requires_grad_()
    gated, share = kept_gradient(together, ref_logp, mask, draws)
    gated.where(mask, 0.0).sum().backward()
    for run in range(3):
        alone, ids = logp[run].clone().requires_grad_(), torch.zeros(6, 5, dtype=torch.long)
        sampling = HumanlineSampling(draws=draws[run])
        out = token_log_ratio(TokenLogp(alone), TokenLogp(ref_logp[run]), ids, mask[run], perception=sampling)
        out.log_ratio.sum().backward()
        assert torch.equal(together.grad[run], alone.grad)
        assert share[run].item() == pytest.approx(1 - out.unclamped_fraction.item())


def test_a_clamp_beside_sampling_is_refused():
    with pytest.raises(ValueError, match="expected infinite bounds with humanline sampling, got finite ones"):
        replace(SAMPLING, log_epsilon_P=-1.0, log_epsilon_R=1.0)


# Clamp or sampling


def run_of(arm: str, seed: int, reward: float, objective: str, phase: str = "final") -> Run:
    k = None if arm == "plain" else 50
    return Run("equal", phase, "", arm, objective, seed, 1e-3, 0.1, 0.2, math.inf, k, None, 0.4, reward, reward)


def rows_of(**sampling: float) -> list[Run]:
    """Return rows in which the clamp ends at .8, sampling at the given rewards, and its other form at .1."""
    rewards = {"plain": dict.fromkeys(sampling, 0.7), "humanline": dict.fromkeys(sampling, 0.8), "sampling": sampling}
    rewards["sampling, frozen"] = dict.fromkeys(sampling, 0.1)
    return [
        run_of(arm, seed, reward + 0.001 * (seed % 3) * (arm == "sampling"), objective, phase)
        for arm, by_objective in rewards.items()
        for objective, reward in by_objective.items()
        for phase in ("tuning", "final")
        for seed in range(6)
    ]


def test_the_summary_begins_with_the_objectives_that_lose():
    assert perception.summary(rows_of(dpo=0.85, kto=0.7, grpo=0.799)) == (
        "Sampling, in the form that the tuning prefers, ends below clamp and sync with KTO; level with it, as far "
        "as the seeds can show, with GRPO; above it with DPO."
    )


def test_the_form_of_sampling_is_chosen_by_the_tuning():
    rows = rows_of(dpo=0.85)
    assert perception.best(rows, "dpo") == "sampling"
    swapped = [replace(r, reward=0.9) if r.arm == "sampling, frozen" and r.phase == "tuning" else r for r in rows]
    assert perception.best(swapped, "dpo") == "sampling, frozen"


def test_every_arm_has_as_many_settings():
    for loss in equal.OBJECTIVES:
        arms = perception.arms(loss) | equal.arms(loss)
        assert {len(settings) for settings in arms.values()} == {48}


def test_a_setting_without_sampling_has_the_name_it_had_before_in_the_hash_of_a_protocol():
    assert "gamma" not in repr(Setting("plain"))


@pytest.mark.parametrize(("protocol", "trained"), [("this one", 2), ("another", 4)])
def test_the_results_of_equal_are_read_only_if_they_are_of_the_same_protocol(tmp_path, monkeypatch, protocol, trained):
    quick = USUAL.quick()
    facts = equal.EXPERIMENT.facts(quick) if protocol == "this one" else {"protocol": "another"}
    write(tmp_path / "paper/equal.csv", Run, facts, rows_of(dpo=0.8, kto=0.8, grpo=0.8))
    monkeypatch.setattr(equal, "RESULTS", tmp_path)
    monkeypatch.setattr(equal, "OBJECTIVES", ("dpo",))
    rows = perception.run(quick)
    assert len({row.arm for row in rows if row.experiment == "perception"}) == trained


# What people perceive


def test_perception_puts_the_weight_of_the_capacities_beyond_the_clamp():
    tail = 0.5 * math.erfc(weights.BOUND / math.sqrt(2))
    halves = [capacity(a, gamma).item() for a in (tail, 0.5) for gamma in (GAMMA_GAINS, GAMMA_LOSSES)]
    perceived = weights.run(USUAL)[0]
    assert perceived.beyond == pytest.approx(sum(halves[:2]) / sum(halves[2:]), abs=1e-6)
    assert round(perceived.beyond, 2) == 0.33


def test_the_divergences_of_shifted_samples_differ_by_the_perceived_mean():
    middles, edges = weights.outcomes()
    mean = float((weights.perceived(middles, edges) * middles).sum())
    rows = weights.run(USUAL)
    policy = next(row for row in rows if row.name == "policy")
    for row in rows[2:4]:
        assert row.mean is not None
        expected = policy.divergence + row.mean**2 / 2 - row.mean * mean
        assert row.divergence == pytest.approx(expected, abs=1e-4)  # bins of .005 nats


def test_the_closest_samples_are_wider_than_the_policy_s():
    rows = weights.run(USUAL)
    assert weights.best(rows).deviation == 1.45
    assert [round(row.divergence, 2) for row in (rows[1], rows[2], weights.best(rows))] == [0.2, 0.72, 0.01]
    assert weights.EXPERIMENT.claims[0].verdict(rows).startswith("holds for normal outcomes, but wider")


# A γ for each person


@pytest.fixture(scope="module")
def learners():
    return personal.run(USUAL.quick())


def test_without_a_spread_the_own_gamma_is_the_median(learners):
    same = [[r.gained for r in learners if (r.arm, r.spread) == (arm, 0.0)] for arm in ("own", "median")]
    assert same[0] == same[1]


def test_who_knows_coefficients_and_gamma_chooses_each_person_s_best_response(learners):
    known = [row for row in learners if (row.arm, row.labels) == ("own", 0)]
    assert {(row.gained, row.agrees) for row in known} == {(1.0, 1.0)}


def test_the_fit_finds_the_coefficients_of_many_labels():
    generators = [torch.Generator().manual_seed(1)]
    pairs = personal.drawn(generators, torch.zeros(1, 3, dtype=torch.float64), 500, 2)
    truth = torch.tensor([[1.0, -1.0, 0.5, 0.0, -0.5, 2.0]], dtype=torch.float64)
    first, second = pairs.utilities(truth, "own").unbind(-1)
    labels = torch.rand(first.shape, generator=generators[0], dtype=torch.float64) < (first - second).sigmoid()
    found = personal.fitted(pairs, labels, "own", personal.STEPS)
    assert torch.nn.functional.cosine_similarity(found, truth).item() > 0.95


def test_certain_outcomes_are_ordered_alike_by_every_model_of_people():
    generators = [torch.Generator().manual_seed(0)]
    drawn = personal.drawn(generators, torch.tensor([[0.3, -0.3]], dtype=torch.float64), 50, 4)
    certain = replace(drawn, probabilities=torch.eye(4, dtype=torch.float64)[0].expand_as(drawn.probabilities))
    coefficients = torch.ones(1, personal.FEATURES, dtype=torch.float64)
    own, median, rational = (certain.utilities(coefficients, arm) for arm in ("own", "median", "rational"))
    torch.testing.assert_close(own, median)
    torch.testing.assert_close(own, rational)


def learner_rows(gains: dict[int, float]) -> list[personal.Learner]:
    """Return rows in which the own γ gains so much over the median's, by labels."""
    return [
        personal.Learner(arm, seed, spread, labels, 0.8 + 0.001 * seed + gain * (arm == "own"), 0.9, 0.1)
        for labels, gain in gains.items()
        for spread in (0.0, 0.3)
        for arm in personal.ARMS
        for seed in range(6)
    ]


def test_a_paragraph_names_where_nothing_is_gained_first():
    rows = learner_rows({0: 0.01, 100: 0.0})
    assert personal.paragraph(rows).startswith("With 100 labels a person's own γ shows no gain over the median's.")
    (claim,) = personal.EXPERIMENT.claims
    assert claim.verdict(rows) == "yes, if γ is known, with known coefficients only"
    assert claim.ours(rows).endswith("100 labels +0.00 [+0.00, +0.00]; known coefficients +1.00 [+1.00, +1.00]")
