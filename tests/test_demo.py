"""The demo: its task, its claims, its second process, and all its output files in a run of a few steps."""

import dataclasses
import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.paper.intervals import final
from benchmarks.paper.run_rows import Run
from benchmarks.results import RESULTS, read
from humanline_fused.cli import main
from humanline_fused.demo import task
from humanline_fused.demo.claims import claims, gain
from humanline_fused.demo.comparison import FIRST_SEED, Demo, Results, conclusion, run_demo, table
from humanline_fused.demo.llama_runs import HELDOUT_REWARD, LlamaRun, LlamaSizes
from humanline_fused.demo.many_policies import TUNED, Arm, ManyPolicies, Trained
from humanline_fused.demo.model_answers import expected_reward, preference_pairs, sample
from humanline_fused.demo.picture import draw_demo
from humanline_fused.demo.second_process import SecondProcess
from humanline_fused.demo.start_model import make_model, make_tokenizer
from humanline_fused.looking.curves import read_metrics, series
from humanline_fused.tiny import Demonstrations, Policies, Sorting
from tests import second_process_calls

SMALL = Demo(
    Path(),
    policies=ManyPolicies(
        first_seed=0,
        seeds=6,
        swept_seeds=6,
        steps=2,
        rates=(1e-3, 1e-2),
        policies=Policies(Sorting(digits=2, alphabet=4), hidden=8),
        demonstrations=Demonstrations(until=0.15),
    ),
    llama=LlamaSizes(
        hidden=64,
        layers=1,
        letters=(1, 2),
        demonstrations=40,
        pair_prompts=96,
        heldout_prompts=16,
        start_steps=80,
        steps=4,
        batch_size=4,
        sync_every=1,
        evaluate_every=2,
    ),
)
"""Lists of one or two letters: 80 supervised steps give about 48 pairs, three times the number that four steps need."""


@pytest.fixture(scope="module")
def small_demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Results]:
    folder = tmp_path_factory.mktemp("demo")
    return folder, run_demo(replace(SMALL, output_dir=folder / "out", picture=folder / "demo.svg"))


def test_the_reward_accepts_only_the_sorted_letters() -> None:
    assert task.reward("sort cabba: ", "aabbc") == 1.0
    assert [task.reward("sort cab: ", wrong) for wrong in ("cba", "ab", "abcc", "abc ", "")] == [0.0] * 5


def test_prompts_are_distinct_and_determined_by_the_seed() -> None:
    prompts = task.make_prompts(500, random.Random(3))
    assert len(set(prompts)) == 500
    assert prompts == task.make_prompts(500, random.Random(3)) != task.make_prompts(500, random.Random(4))


def test_demonstrations_are_in_ascending_or_descending_order() -> None:
    rng = random.Random(0)
    shown = [task.demonstration("sort cab: ", rng) for _ in range(1000)]
    assert set(shown) == {"abc", "cba"}
    assert 350 < shown.count("abc") < 450


def test_the_tokenizer_decodes_to_the_original_text() -> None:
    tokenizer = make_tokenizer()
    ids = tokenizer("sort bead: abde<eos>")["input_ids"]
    assert len(ids) == len("sort bead: abde") + 1
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == "sort bead: abde"


def test_samples_are_determined_by_the_seed_and_keep_torchs_global_generator() -> None:
    tokenizer = make_tokenizer()
    model = make_model(tokenizer, seed=0)
    before = torch.get_rng_state()
    answers = [sample(model, tokenizer, ["sort cab: ", "sort bead: "], seed) for seed in (1, 1, 2)]
    assert answers[0] == answers[1] != answers[2]
    assert torch.equal(torch.get_rng_state(), before)


def test_a_prompt_gives_a_pair_only_if_its_answers_differ_in_reward(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = iter([["abc", "cb", "a"], ["cba", "bc", "b"]])
    monkeypatch.setattr("humanline_fused.demo.model_answers.sample", lambda *_: next(drawn))
    model = tokenizer = None
    prompts = ["sort cab: ", "sort bc: ", "sort d: "]
    pairs = list(preference_pairs(model, tokenizer, prompts, 0, samples=2))  # pyright: ignore[reportArgumentType]
    assert pairs == [
        {"prompt": "sort cab: ", "chosen": "abc", "rejected": "cba"},
        {"prompt": "sort bc: ", "chosen": "bc", "rejected": "cb"},
    ]


def test_the_expected_reward_is_the_mean_probability_of_the_right_answer_and_its_end() -> None:
    tokenizer = make_tokenizer()
    model = make_model(tokenizer, seed=0, hidden=16, layers=1)
    products = []
    for prompt in ("sort b: ", "sort cab: "):
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        product = 1.0
        for token in (*tokenizer(task.answer(prompt))["input_ids"], tokenizer.eos_token_id):
            product *= model.eval()(ids).logits[0, -1].softmax(-1)[token].item()
            ids = torch.cat([ids, torch.tensor([[token]])], 1)
        products.append(product)
    assert expected_reward(model, tokenizer, ["sort b: ", "sort cab: "]) == pytest.approx(sum(products) / 2, rel=1e-5)


def test_the_demo_writes_valid_preference_data(small_demo: tuple[Path, Results]) -> None:
    folder = small_demo[0] / "out"
    pairs = [json.loads(line) for line in (folder / "data" / "pairs.jsonl").read_text().splitlines()]
    assert pairs
    for pair in pairs:
        assert task.reward(pair["prompt"], pair["chosen"]) > task.reward(pair["prompt"], pair["rejected"])


@pytest.mark.parametrize("name", ["start", "plain", "humanline", "plain_tuned"])
def test_the_demo_writes_models_that_load(small_demo: tuple[Path, Results], name: str) -> None:
    folder = small_demo[0] / "out"
    model = AutoModelForCausalLM.from_pretrained(folder / name)
    tokenizer = AutoTokenizer.from_pretrained(folder / name)
    assert sample(model, tokenizer, ["sort cab: "], seed=0)[0] is not None
    start = AutoModelForCausalLM.from_pretrained(folder / "start")
    same = all(torch.equal(a, b) for a, b in zip(model.parameters(), start.parameters(), strict=True))
    assert same == (name == "start")


def test_all_runs_start_at_the_same_reward_and_are_evaluated_on_schedule(
    small_demo: tuple[Path, Results],
) -> None:
    folder, results = small_demo[0] / "out", small_demo[1]
    curves = {name: read_metrics(folder / name) for name in results.llama}
    assert list(curves) == ["plain", "humanline", "plain_tuned"]
    for name, lines in curves.items():
        steps, rewards = series(lines, "step", HELDOUT_REWARD)
        assert steps == [0, 2, 4]
        assert (steps, rewards) == (results.llama[name].steps, results.llama[name].rewards)
        assert rewards[0] == results.llama["plain"].rewards[0]
        assert results.llama[name].seconds == series(lines, "step", "time/training")[1][-1]


def test_humanline_and_plain_differ_only_once_the_reference_is_synced(small_demo: tuple[Path, Results]) -> None:
    folder = small_demo[0] / "out"
    lines = {name: read_metrics(folder / name) for name in ("plain", "humanline")}
    losses = {name: series(of_run, "step", "loss")[1] for name, of_run in lines.items()}
    assert losses["plain"][0] == losses["humanline"][0]
    plain, humanline = (small_demo[1].llama[name].rewards for name in ("plain", "humanline"))
    assert plain[0] == humanline[0]
    assert plain[-1] != humanline[-1]


def test_the_demo_writes_a_picture_and_its_numbers(small_demo: tuple[Path, Results]) -> None:
    folder, results = small_demo[0] / "out", small_demo[1]
    assert (folder / "comparison.png").read_bytes().startswith(b"\x89PNG")
    assert (small_demo[0] / "demo.svg").read_bytes().startswith(b"<?xml")
    assert json.loads((folder / "results.json").read_text()) == dataclasses.asdict(results)


def test_the_table_has_every_arm_run_and_claim(small_demo: tuple[Path, Results]) -> None:
    results = small_demo[1]
    text = table(results, SMALL.llama)
    for setting in TUNED:
        assert f"{setting.name} (β" in text
    for run in results.llama.values():
        assert f"ends at {run.rewards[-1]:.2f}" in text
    for claim in results.claims.values():
        assert f"{'holds' if claim.holds else 'FAILS'}  {claim.text}: {claim.figure}" in text


def trained(plain: float, humanline: float, online: float, *, seeds: int = 6) -> Trained:
    """Results of policies whose reward is the same at every seed; humanline's sweep is good at two of three rates."""
    arms = {
        name: Arm([0.0, 1.0], [[0.4, reward]] * seeds)
        for name, reward in (("plain", plain), ("humanline", humanline), ("online", online))
    }
    sweep = {"plain": (0.5, 0.4, 0.1), "plain, β tuned": (0.5, 0.7, 0.1), "humanline": (0.6, 0.8, 0.7)}
    rates = [1e-4, 1e-3, 1e-2]
    return Trained(arms, rates, {name: [[reward] * seeds for reward in means] for name, means in sweep.items()})


def llamas(plain: float, humanline: float, tuned: float) -> dict[str, LlamaRun]:
    """Runs of a Llama with the given final rewards."""
    rewards = {"plain": plain, "humanline": humanline, "plain_tuned": tuned}
    return {name: LlamaRun([0, 4], [0.3, reward], 0.8, 4, 1.0) for name, reward in rewards.items()}


def test_a_claim_holds_only_if_the_results_agree() -> None:
    agreeing = claims(trained(0.7, 0.8, 0.9), llamas(0.4, 0.8, 0.7))
    assert {name: claim.holds for name, claim in agreeing.items()} == dict.fromkeys(agreeing, True)
    opposed = claims(trained(0.8, 0.7, 0.7), llamas(0.8, 0.4, 0.5))
    assert [name for name, claim in opposed.items() if claim.holds] == ["width", "binds"]
    assert not claims(trained(0.7, 0.8, 0.9), llamas(0.4, 0.8, 0.59))["match"].holds


def test_equal_rewards_are_no_gain() -> None:
    assert not claims(trained(0.8, 0.8, 0.8), llamas(0.4, 0.8, 0.7))["gain"].holds


def test_the_gain_of_an_arm_is_paired_by_seed() -> None:
    results = trained(0.7, 0.8, 0.9)
    results.arms["plain"].rewards[:] = [[0.4, 0.1 * seed] for seed in range(6)]
    results.arms["humanline"].rewards[:] = [[0.4, 0.1 * seed + 0.05] for seed in range(6)]
    assert gain(results, "humanline", "plain") == pytest.approx((0.05, 0.05, 0.05))


@pytest.mark.parametrize(
    ("tuned", "says"),
    [
        (0.85, "Tuned plain DPO can match humanline there; humanline needs less tuning."),
        (0.7, "Tuning plain DPO makes up at least half of the difference there; humanline needs less tuning."),
        (0.5, "Tuned plain DPO did not match humanline in this run; humanline needs less tuning."),
    ],
)
def test_the_conclusion_is_that_of_the_run(tuned: float, says: str) -> None:
    policies, runs = trained(0.7, 0.8, 0.9), llamas(0.4, 0.8, tuned)
    assert conclusion(Results(0, policies, runs, claims(policies, runs), 1.0)).endswith(says)


def test_a_panel_states_a_claim_only_if_it_holds(tmp_path: Path) -> None:
    titles = []
    for rewards in ((0.7, 0.8, 0.9), (0.8, 0.7, 0.7)):
        policies, runs = trained(*rewards), llamas(0.4, 0.8, 0.7)
        draw_demo(policies, runs, LlamaSizes(), claims(policies, runs), tmp_path / "picture.svg")
        titles.append("humanline above plain" in (tmp_path / "picture.svg").read_text())
    assert titles == [True, False]


def test_offline_policies_begin_with_the_seconds_of_all_their_samples(small_demo: tuple[Path, Results]) -> None:
    arms = small_demo[1].policies.arms
    assert arms["online"].seconds[0] == 0
    assert arms["plain"].seconds[0] > 0
    assert all(arm.seconds == sorted(arm.seconds) for arm in arms.values())


def test_the_tiny_policies_use_the_settings_that_equal_tuning_chose() -> None:
    _, rows = read(RESULTS / "paper" / "equal.csv", Run)
    for setting in TUNED:
        row = final(rows, objective="dpo", arm=setting.name)[0]
        chosen = (row.learning_rate, row.beta, row.width, row.sync_every, row.resample_every)
        width, k, online = setting.log_epsilon_R, setting.sync_every, setting.resample_every
        assert chosen == (setting.learning_rate, setting.beta, width, k, online)
    tuning = {row.seed for row in rows if row.phase == "tuning"}
    assert max(tuning) < FIRST_SEED


def test_an_error_of_the_second_process_is_raised_with_its_text() -> None:
    with (
        SecondProcess(second_process_calls.fail, "a reason") as other,
        pytest.raises(RuntimeError, match="ValueError: a reason"),
    ):
        other.result(print)


def test_a_second_process_that_dies_is_an_error_and_no_endless_wait() -> None:
    with (
        SecondProcess(second_process_calls.die, 3) as other,
        pytest.raises(RuntimeError, match="ended with exit code 3"),
    ):
        other.result(print)


def test_a_second_process_ends_with_the_block() -> None:
    with pytest.raises(KeyboardInterrupt), SecondProcess(second_process_calls.sleep, 600) as other:
        raise KeyboardInterrupt
    assert not other.process.is_alive()


@pytest.mark.parametrize("seed", [-1, 10**6])
def test_a_seed_outside_the_range_is_refused(seed: int) -> None:
    with pytest.raises(ValueError, match=f"seed: expected an integer from 0 to 999999, got {seed}"):
        Demo(Path(), seed=seed)


def test_an_unusable_output_is_a_line_on_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert main(["demo", "--output_dir", str(tmp_path / "file")]) == 1
    assert main(["demo", "--picture", str(tmp_path / "demo.txt")]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert "File exists" in first
    assert "expected a file that ends in one of" in second
