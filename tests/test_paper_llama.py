"""The paper's experiments with the trainer itself: on the small Llama, its speed, and the check of real size."""

import json
import math
import os
import random
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.paper import command, llama, problems, real_scale, speed, taught
from benchmarks.paper.letters import ProcessorClock, Watch, make
from benchmarks.paper.llama import QUICK, arms, chosen, fields_of, key_of, paragraph, sweep
from benchmarks.paper.protocol import Protocol
from benchmarks.paper.run_rows import Run
from benchmarks.paper.speed import Timed
from benchmarks.paper.unfinished import Unfinished
from benchmarks.results import read
from humanline_fused.tiny import Setting

FINAL = tuple(range(800, 806))


@pytest.fixture(scope="module")
def letters():
    return make(QUICK, seed=3)


# The held-out reward


def test_a_model_without_preference_gives_the_right_answer_by_chance(letters):
    """Two or three letters and the end, of 21 equally likely tokens."""
    uniform = letters.model.__class__(letters.model.config)
    torch.nn.init.zeros_(uniform.get_input_embeddings().weight)
    lengths = [len(prompt) - len("sort : ") for prompt in letters.heldout]
    expected = sum(21.0 ** -(length + 1) for length in lengths) / len(lengths)
    assert len(letters.tokenizer) == 21
    assert letters.reward(uniform) == pytest.approx(expected, rel=1e-5)


def test_a_start_and_its_data_are_those_of_the_seed(letters):
    again, other = make(QUICK, seed=3), make(QUICK, seed=4)
    assert again.groups == letters.groups
    assert other.groups != letters.groups
    assert all(map(torch.equal, again.model.parameters(), letters.model.parameters()))


def test_no_prompt_is_both_trained_on_and_held_out(letters):
    assert not set(letters.heldout) & {group["prompt"] for group in letters.groups}
    assert not set(letters.heldout) & set(letters.prompts)


def test_training_leaves_the_start_as_it_was(letters):
    before = [p.clone() for p in letters.model.parameters()]
    first, again = (letters.train("grpo", {"learning_rate": 1e-2}, evaluate_every=1) for _ in range(2))
    assert all(map(torch.equal, before, letters.model.parameters()))
    assert first.rewards == again.rewards
    assert first.rewards[-1] != letters.start


def test_a_run_that_sigterm_stops_gives_no_row(letters, monkeypatch):
    monkeypatch.setattr(Watch, "on_step_begin", lambda *args, **kwargs: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit, match="stopped at step 1 of 2"):
        letters.train("grpo", {}, evaluate_every=1)


# Arms


@pytest.mark.parametrize("objective", llama.OBJECTIVES)
def test_every_arm_of_the_llama_has_eight_settings(objective):
    assert {arm: len(set(tried)) for arm, tried in arms(objective).items()} == dict.fromkeys(llama.ARMS, 8)


def test_settings_become_fields_of_the_trainers_config():
    plain = fields_of(Setting("plain", 1e-4, beta=3.0), "dpo")
    assert plain == {"learning_rate": 1e-4, "clamp": False, "reference": "frozen", "beta": 3.0}
    bounds = {"log_epsilon_P": -0.5, "log_epsilon_R": 0.5}
    humanline = fields_of(Setting("humanline", 1e-4, sync_every=20, **bounds), "kto")
    assert humanline["reference"] == "lookahead"
    assert humanline["sync_every"] == 20
    assert {name: humanline[name] for name in bounds} == bounds
    online = fields_of(Setting("online", 1e-4, epsilon=10.0, resample_every=1, sync_every=1), "grpo")
    assert (online["reference"], online["rollout_every"]) == ("copy", 1)
    assert (online["epsilon"], online["epsilon_high"]) == (1.0, 10.0)


# The command


def test_an_interrupted_comparison_trains_only_what_is_missing(tmp_path, monkeypatch):
    """Two rounds of tuning, then the final seeds; the reward is a function of setting and seed, without training."""
    trained = []

    def row_of(letters, phase, key):
        objective, arm, setting = key
        trained.append((phase, letters, setting.learning_rate))
        if len(trained) == 5:
            raise KeyboardInterrupt
        return replace(
            ROW,
            phase=phase,
            arm=arm,
            objective=objective,
            seed=letters,
            learning_rate=setting.learning_rate,
            beta=setting.beta,
            reward=setting.learning_rate * (1 if letters < 3 else -1),
        )

    monkeypatch.setattr(llama, "row_of", row_of)
    monkeypatch.setattr(llama, "make", lambda size, seed: seed)
    rules = Protocol(first=(1, 2), second=(3,), survivors=2, final=(10,))
    settings = {("dpo", "plain"): [Setting("plain", rate) for rate in (0.1, 0.2, 0.4)]}
    file = tmp_path / "rows.csv"

    def compare():
        kept = Unfinished(file, Run, {"protocol": "1"})
        llama.Trainings(rules, QUICK, kept).compare(settings)
        return kept.finish()

    with pytest.raises(KeyboardInterrupt):
        compare()
    rows = compare()
    assert trained[4] == trained[5]
    assert [(row.phase, row.seed, row.learning_rate) for row in rows] == [
        *(("tuning", seed, rate) for seed in (1, 2) for rate in (0.1, 0.2, 0.4)),
        *(("tuning", 3, rate) for rate in (0.4, 0.2)),
        ("final", 10, 0.4),
    ]
    assert not file.exists()


def test_rows_of_another_protocol_are_not_taken_up(tmp_path):
    file = tmp_path / "rows.csv"
    Unfinished(file, Run, {"protocol": "1"}).add([ROW])
    assert Unfinished(file, Run, {"protocol": "1"}).rows == [ROW]
    assert Unfinished(file, Run, {"protocol": "2"}).rows == []


# The text


ROW = Run("llama", "final", "", "plain", "dpo", 800, 1e-4, 1.0, 0.2, math.inf, None, None, 0.3, 0.5, 0.5)


def rows(**rewards: float) -> list[Run]:
    """Return final rows whose rewards differ by seed as little as .01, and the tuning's of two settings."""
    made = []
    for arm, value in rewards.items():
        width = 0.5 if arm in ("clamp", "humanline") else math.inf
        one = replace(ROW, arm=arm, width=width, sync_every=20 if arm == "humanline" else None)
        made += [replace(one, seed=seed, reward=value + 0.01 * (seed % 2), best=value) for seed in FINAL]
        for rate, factor in ((1e-4, 1.0), (3e-4, 0.5)):
            made.append(replace(one, phase="tuning", seed=900, learning_rate=rate, reward=value * factor))
        made.append(replace(one, phase="tuning", seed=901, reward=0.0))  # of the second round
    return made


def test_a_row_is_found_by_its_setting():
    for arm, tried in arms("grpo").items():
        for setting in tried:
            row = replace(
                ROW,
                objective="grpo",
                arm=arm,
                learning_rate=setting.learning_rate,
                beta=setting.beta,
                epsilon=setting.epsilon,
                width=setting.log_epsilon_R,
                sync_every=setting.sync_every,
                resample_every=setting.resample_every,
            )
            assert key_of(row) == ("grpo", arm, setting)


def test_the_text_begins_with_what_does_not_hold():
    text = paragraph(rows(plain=0.7, clamp=0.7, humanline=0.6, online=0.9))
    first, second, third = text.splitlines()[:3]
    assert first == "- Humanline is worse than tuned plain training: DPO -0.100 [-0.100, -0.100]."
    assert second == "- The sync makes the clamp alone worse: DPO -0.100 [-0.100, -0.100]."
    assert third == "- Online stays ahead of humanline: DPO +0.300 [+0.300, +0.300]."


def test_the_text_says_where_the_tuning_chose_an_end_of_the_grid():
    text = paragraph(rows(plain=0.7, clamp=0.7, humanline=0.6, online=0.9))
    ends = ", ".join(f"DPO {arm} (0.0001)" for arm in llama.ARMS)
    assert text.endswith(f"Arms with a learning rate at an end: {ends}.")


def test_settings_taken_blindly_are_compared_by_their_mean():
    """The second setting of every arm gives half of the first."""
    text = paragraph(rows(plain=0.72, clamp=0.72, humanline=0.6, online=0.92))
    cells = "0.36, 0.72 (mean 0.54) | 0.36, 0.72 (mean 0.54) | 0.30, 0.60 (mean 0.45) | 0.46, 0.92 (mean 0.69)"
    assert f"| DPO | {cells} |" in text
    assert "better with humanline than plain for none, and no better for DPO." in text


def test_parity_needs_a_gain_over_plain_and_no_loss_to_online():
    (claim,) = llama.EXPERIMENT.claims
    assert claim.verdict(rows(plain=0.5, clamp=0.6, humanline=0.8, online=0.8)) == "holds"
    assert claim.verdict(rows(plain=0.8, clamp=0.6, humanline=0.8, online=0.9)) == "does not hold"
    part = "holds only in part: a gain for DPO; parity with online for none"
    assert claim.verdict(rows(plain=0.5, clamp=0.6, humanline=0.8, online=0.9)) == part


def test_a_sweep_averages_the_seeds_that_every_setting_has():
    given = rows(plain=0.6)
    assert sweep(given, "dpo", "plain") == pytest.approx([0.3, 0.6])
    assert chosen(given, "dpo", "plain") == "lr 0.0001, β 1"


# Speed


def timed(arm: str, end: float, generation: float, seed: int = 800) -> Timed:
    """Return a run that goes from 0 to ``end`` in four seconds of training, and samples for ``generation``."""
    drawn = 64 if generation else 0
    return Timed(arm, "dpo", seed, (0, 4), (0.0, end), (0.0, 4.0), (0.0, generation), (0.0, 0.0), 2.0, drawn)


def test_the_ratio_of_seconds_is_linear_in_the_cost_of_a_sample():
    """Target .4: online after half its 4 + 4c seconds, humanline after half of 4, or of 4 + 2c with the data drawn."""
    given = [timed("online", 0.8, 4.0), timed("humanline", 0.8, 0.0)]
    assert speed.target(given) == pytest.approx(0.4)
    assert [speed.ratio(given, c) for c in (1, 3, 10)] == pytest.approx([2.0, 4.0, 11.0])
    assert speed.ratio(given, 1, with_data=True) == pytest.approx(8 / 6)
    factor = speed.implied_factor(given)
    assert speed.ratio(given, factor) == pytest.approx(speed.PAPER)


def test_waiting_costs_no_processor_seconds():
    clock = ProcessorClock(torch.device("cpu"))
    began = time.monotonic()
    with clock.spent_on("generation"):
        time.sleep(0.2)
    assert clock.seconds()["time/generation"] < 0.1 < time.monotonic() - began


def test_an_arm_that_misses_the_target_has_no_time():
    given = [timed("online", 0.8, 4.0), timed("humanline", 0.3, 0.0), timed("plain", 0.8, 0.0), timed("stale", 0.8, 1)]
    assert speed.mean_seconds(given, "humanline") is None
    assert speed.ratio(given, 1) is None
    assert "| offline + humanline | reached with 0 of 1 seeds |" in speed.paragraph(given)


def test_the_quick_form_of_speed_counts_sampling_apart(tmp_path):
    command.main(["speed", "--quick", "--output_dir", str(tmp_path)])
    found = read(tmp_path / "speed.csv", Timed)[1]
    assert {row.arm for row in found} == set(speed.ARMS)
    for row in found:
        assert (row.generation[-1] > 0) == (row.samples > 0) == (row.arm in ("online", "stale"))
    assert (tmp_path / "speed.png").is_file()


def test_the_text_of_speed_says_how_far_offline_runs_come():
    given = [
        timed("online", 0.8, 4.0),
        timed("humanline", 0.6, 0.0),
        timed("plain", 0.8, 0.0),
        timed("stale", 0.8, 4.0),
    ]
    text = speed.paragraph(given)
    assert "Online's final reward, 0.800, is reached by offline + humanline with 0 of 1 seeds." in text
    assert "offline without humanline takes 0.75 times its seconds" in text


def test_speed_asks_for_the_settings_that_the_llama_chose(tmp_path, monkeypatch):
    monkeypatch.setattr(speed, "RESULTS", tmp_path)
    with pytest.raises(ValueError, match="expected the settings chosen by `python -m benchmarks paper llama`"):
        speed.chosen_settings()


# The check of real size


def test_generated_problems_are_solved_by_their_answers():
    made = problems.make_problems(200, random.Random(0))
    assert len({one["question"] for one in made}) == 200
    for one in made:
        last = one["answer"].split(" ####")[0].split(", ")[-1]
        left, right = last.split(" = ")
        assert eval(left) == int(right) == int(problems.final_number(one["answer"]))


def test_a_reward_takes_texts_and_conversations():
    said = ["so 1,250.0", [{"role": "assistant", "content": "5"}], "no number"]
    assert problems.rewards_of(said, answer=["#### 1250", "#### 6", "#### 1"]) == [1.0, 0.0, 0.0]


def test_a_demonstration_is_the_right_solution_or_its_first_step():
    rng = random.Random(0)
    given = {taught.solution("2 * 3 = 6, 6 + 1 = 7 #### 7", rng) for _ in range(50)}
    assert given == {"2 * 3 = 6, 6 + 1 = 7 #### 7", "2 * 3 = 6 #### 6"}


def test_the_check_runs_to_its_end_on_a_cpu_and_is_taken_up(tmp_path, capsys):
    command.main(["gpu", "--tiny", "--seeds", "1", "--folder", str(tmp_path)])
    found = read(tmp_path / "gpu.csv", real_scale.Trained)[1]
    assert [row.arm for row in found] == ["plain", "humanline", "online"]
    assert found[0].generation == 0 < found[2].generation
    assert all(row.peak_mib is None for row in found)
    samples = [json.loads(line) for line in (tmp_path / "samples-0.jsonl").read_text().splitlines()]
    assert len(samples) == real_scale.TINY.steps * real_scale.TINY.prompts
    capsys.readouterr()
    command.main(["gpu", "--tiny", "--seeds", "1", "--folder", str(tmp_path)])
    assert "learning rate" not in capsys.readouterr().out


def test_without_a_gpu_the_check_says_what_runs_on_a_cpu(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="expected a GPU, got none; --tiny runs on a CPU"):
        command.main(["gpu", "--folder", str(tmp_path)])


def test_a_dataset_without_the_columns_of_a_problem_is_refused(tmp_path):
    file = tmp_path / "data.jsonl"
    file.write_text(json.dumps({"prompt": "2 + 2"}) + "\n")
    check = real_scale.Check(real_scale.TINY, None, str(file), Path(tmp_path), torch.device("cpu"))
    with pytest.raises(ValueError, match="expected columns question and answer, got \\['prompt'\\]"):
        check.problems(0)
