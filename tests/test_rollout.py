"""Online rounds: sampling, conversion of samples to examples, logs and resuming."""

import functools
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from humanline_fused.training import GROUPS, LABELS, PAIRS, HumanlineTrainer
from humanline_fused.training.data.batch import collate
from humanline_fused.training.data.examples import Example, Sample
from humanline_fused.training.data.plan import BatchSizes, RoundPlan
from humanline_fused.training.objectives import find_objective
from humanline_fused.training.online.generation import Sampling, sample
from humanline_fused.training.online.logged_samples import logged_groups, sealed
from humanline_fused.training.online.rollout import fill
from tests.tiny_model import WORDS, tiny_config, tiny_model, tiny_tokenizer

PROMPTS = [{"prompt": f"w{i} w{i + 1}", "wanted": f"w{i + 2}"} for i in range(8)]
ROUNDS: dict[str, Any] = {
    "rollout_every": 2,
    "num_generations": 4,
    "max_completion_length": 5,
    "reference": "copy",
    "per_device_train_batch_size": 8,
    "max_steps": 4,
    "train_dataset": PROMPTS,
}


def first_word(prompts: list[Any], completions: list[str], wanted: list[str]) -> list[float]:
    """Reward the position of the completion's first word in the vocabulary; it differs between most samples."""
    assert len(prompts) == len(completions) == len(wanted)
    return [float(WORDS.index(c.split()[0])) if c.split() and c.split()[0] in WORDS else -1.0 for c in completions]


def rounds_trainer(output_dir: Path, function: Any = first_word, **settings: Any) -> HumanlineTrainer:
    given = ROUNDS | settings
    built = {name: given.pop(name) for name in ("model", "eval_dataset", "callbacks") if name in given}
    settings = {name: value for name, value in given.items() if name != "train_dataset"}
    return HumanlineTrainer(
        args=tiny_config(output_dir, **settings),
        processing_class=tiny_tokenizer(),
        train_dataset=given["train_dataset"],
        reward_function=function,
        **{"model": tiny_model()} | built,
    )


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def weights(trainer: HumanlineTrainer) -> list[torch.Tensor]:
    return [p.detach().clone() for p in trainer.model.parameters()]


# From samples to examples


PROMPT = Example(torch.tensor([7], dtype=torch.int32), ())


def group(*rewards: float) -> list[Sample]:
    mean = sum(rewards) / len(rewards)
    return [
        Sample(0, torch.tensor([i], dtype=torch.int32), "", reward, reward - mean) for i, reward in enumerate(rewards)
    ]


def test_dpo_pairs_the_first_best_with_the_first_worst_unless_all_are_equal():
    (pair,) = PAIRS.examples_of(PROMPT, group(1.0, 3.0, 0.0, 3.0, 0.0))
    assert [completion.tolist() for completion in pair.completions] == [[1], [2]]
    assert list(PAIRS.examples_of(PROMPT, group(2.0, 2.0))) == []


def test_kto_labels_by_the_sign_of_the_advantage_and_omits_zero_advantages():
    kept = list(LABELS.examples_of(PROMPT, group(0.0, 1.0, 2.0)))
    assert [(example.completions[0].tolist(), example.weight) for example in kept] == [([0], 0.0), ([2], 1.0)]


def test_grpo_uses_the_whole_group_with_its_advantages_even_if_all_are_equal():
    assert [example.weight for example in GROUPS.examples_of(PROMPT, group(0.0, 1.0))] == [-0.5, 0.5]
    assert [example.weight for example in GROUPS.examples_of(PROMPT, group(1.0, 1.0))] == [0.0, 0.0]


def test_a_short_round_repeats_examples_and_neighbours_have_different_prompts():
    plan = RoundPlan(2, per_prompt=2, rollout_every=2, sizes=BatchSizes(4), seed=0)
    a, b = (Example(torch.tensor([i], dtype=torch.int32), ()) for i in range(2))
    same = [Example(prompt.prompt_ids, (torch.tensor([i]),)) for prompt in (a, b) for i in range(2)]
    filled = fill(same[:3], plan, grouped=False)
    assert [(int(e.prompt_ids), int(e.completions[0])) for e in filled[:4]] == [(0, 0), (1, 0), (0, 1), (0, 0)]
    assert len(filled) == 8


def test_a_round_of_groups_keeps_the_samples_of_a_prompt_together(tmp_path: Path):
    trainer = rounds_trainer(tmp_path, objective="grpo", max_steps=1)
    trainer.train()
    prompts = [tuple(example.prompt_ids.tolist()) for example in trainer.train_examples]
    assert len({*prompts}) == 4
    assert prompts == [prompt for prompt in dict.fromkeys(prompts) for _ in range(4)]
    mismatched = rounds_trainer(tmp_path / "kto", objective="kto", max_steps=1)
    mismatched.train()
    first = [tuple(e.prompt_ids.tolist()) for e in mismatched.train_examples[:2]]
    assert first[0] != first[1]


def test_rounds_use_all_prompts_before_repeating_one():
    plan = RoundPlan(6, per_prompt=2, rollout_every=1, sizes=BatchSizes(4, accumulation=2), seed=3)
    seen = [prompt for number in range(3) for prompt in plan.prompts(number)]
    assert sorted(seen[:6]) == sorted(seen[6:]) == list(range(6))
    with pytest.raises(ValueError, match=r"expected num_generations to divide the 8 samples of a round .*, got 3"):
        RoundPlan(6, per_prompt=3, rollout_every=1, sizes=BatchSizes(8), seed=0)


LOGGED = RoundPlan(2, per_prompt=2, rollout_every=2, sizes=BatchSizes(2), seed=0)


def logged(file: Path, **changes: Any) -> Path:
    """Write the samples of the rounds of steps 4 and 6, in which the two prompts of the data have two samples each."""
    lines = []
    for step in (4, 6):
        prompts = [prompt for prompt in LOGGED.prompts(step // 2) for _ in range(2)]
        for number, prompt in enumerate(prompts):
            ids = {"prompt_index": prompt, "completion_ids": [number]}
            line = {"step": step, **ids, "completion": "w1", "reward": 1.0, "advantage": -1 / 3}
            lines.append(sealed(line, "this run") | (changes if (step, number) == (4, 1) else {}))
    file.write_text("".join(json.dumps(line) + "\n" for line in lines if line["step"]))
    return file


def test_logged_samples_of_a_round_are_read_back_by_prompt(tmp_path: Path):
    groups = logged_groups(logged(tmp_path / "file"), 4, LOGGED, 2, "this run")
    assert [[int(one.completion_ids) for one in group] for group in groups] == [[0, 1], [2, 3]]
    assert [group[0].prompt for group in groups] == LOGGED.prompts(2)
    assert {one.advantage for group in groups for one in group} == {-1 / 3}


def test_logged_samples_of_earlier_versions_have_no_checksum(tmp_path: Path):
    file = logged(tmp_path / "file")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps({k: v for k, v in line.items() if k != "checksum"}) + "\n" for line in lines))
    assert len(logged_groups(file, 4, LOGGED, 2, "this run")) == 2


@pytest.mark.parametrize("changes", [{"reward": 2.0}, {"completion_ids": [7]}, {"checksum": 5}, {"prompt_index": 9}])
def test_a_changed_logged_sample_is_refused(tmp_path: Path, changes: dict[str, Any]):
    with pytest.raises(ValueError, match="drew at step 4, got a changed line, or another run's"):
        logged_groups(logged(tmp_path / "file", **changes), 4, LOGGED, 2, "this run")


def test_logged_samples_of_another_run_or_not_all_of_a_round_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="drew at step 4, got a changed line, or another run's"):
        logged_groups(logged(tmp_path / "file"), 4, LOGGED, 2, "another run")
    with pytest.raises(ValueError, match=r"expected samples of the prompts .* at step 4, got those of"):
        logged_groups(logged(tmp_path / "file", step=0), 4, LOGGED, 2, "this run")
    with pytest.raises(ValueError, match="began at step 8, it has none: the run ended before"):
        logged_groups(tmp_path / "file", 8, LOGGED, 2, "this run")


# Sampling


def draw(model: Any, **settings: Any) -> list[list[torch.Tensor]]:
    given = {"num_generations": 3, "max_completion_length": 6, "max_length": 32, "temperature": 1.0, "top_p": 1.0}
    sampling = Sampling(**given | {"batch_size": 2, "pad_token_id": 0} | settings)
    prompts = [torch.tensor(ids, dtype=torch.int32) for ids in ([7], [8, 9], [10])]
    return sample(model, prompts, sampling, {1}, seed=0)


def test_the_models_generation_config_does_not_change_the_distribution_of_samples():
    model = tiny_model()
    plain = draw(model)
    own = model.generation_config
    own.update(top_k=1, repetition_penalty=5.0, min_new_tokens=6, suppress_tokens=list(range(2, 100)), max_time=1e-9)
    bent = draw(model)
    assert [[ids.tolist() for ids in group] for group in bent] == [[ids.tolist() for ids in group] for group in plain]
    assert model.generation_config is own


def test_a_sample_ends_with_its_first_end_of_sequence_and_owns_its_storage():
    model = tiny_model()
    torch.nn.init.zeros_(model.lm_head.weight)
    samples = [ids for group in draw(model, max_completion_length=40, num_generations=30) for ids in group]
    lengths = {len(ids) for ids in samples if int(ids[-1]) == 1}
    assert len(lengths) > 3
    assert all(1 not in ids[:-1] for ids in samples)
    assert {len(ids) for ids in samples if int(ids[-1]) != 1} == {30, 31}  # cut at max_length 32
    assert all(ids.untyped_storage().nbytes() == 4 * len(ids) for ids in samples)


# Runs


@pytest.mark.parametrize(("objective", "rollout_every"), [("dpo", 2), ("kto", 1), ("grpo", 2)])
def test_every_round_is_sampled_by_the_policy_of_its_first_step(tmp_path: Path, objective: str, rollout_every: int):
    trainer = rounds_trainer(tmp_path, objective=objective, rollout_every=rollout_every)
    calls: list[tuple[int, list[torch.Tensor]]] = []
    draw = trainer.rounds._draw

    def spied(places: Any, model: Any, number: int, attempt: int) -> Any:
        calls.append((trainer.state.global_step, weights(trainer)))
        assert model is trainer.model
        return draw(places, model, number, attempt)

    trainer.rounds._draw = spied
    before = weights(trainer)
    trainer.train()
    assert [step for step, _ in calls] == list(range(0, 4, rollout_every))
    assert all(map(torch.equal, calls[0][1], before))
    assert not all(map(torch.equal, calls[-1][1], before))


def test_the_log_has_rewards_and_times_and_the_file_has_every_sample(tmp_path: Path):
    def slow(**given: Any) -> list[float]:
        time.sleep(0.05)
        return first_word(**given)

    rounds_trainer(tmp_path, slow, objective="grpo").train()
    samples, logged = lines(tmp_path / "completions.jsonl"), lines(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in samples] == [0] * 16 + [2] * 16
    shown = {"step", "prompt", "completion", "reward", "advantage", "prompt_index", "completion_ids", "checksum"}
    assert samples[0].keys() == shown
    by_round = [[s["reward"] for s in samples if s["step"] == step] for step in (0, 2)]
    rounds = [line for line in logged if "reward" in line]
    assert [line["reward"] for line in rounds] == pytest.approx([sum(r) / 16 for r in by_round])
    steps = [line for line in logged if "loss" in line]
    assert [line["step"] for line in rounds] == [1, 3]
    assert 0.1 <= steps[-1]["time/reward"] < 1
    assert steps[0]["time/generation"] == steps[1]["time/generation"] < steps[2]["time/generation"]
    spent = sum(steps[-1][f"time/{what}"] for what in ("training", "generation", "reward"))
    assert spent <= steps[-1]["seconds"] + 0.5


def test_grpo_increases_the_reward(tmp_path: Path):
    sizes = {"max_steps": 30, "per_device_train_batch_size": 32, "num_generations": 8, "max_completion_length": 1}
    rate = {"learning_rate": 1e-2, "lr_scheduler_type": "constant"}
    rounds_trainer(tmp_path, objective="grpo", beta=0.0, rollout_every=1, **sizes, **rate).train()
    rewards = [line["reward"] for line in lines(tmp_path / "metrics.jsonl") if "reward" in line]
    assert min(rewards[-5:]) > max(rewards[:5])


def test_the_loss_uses_the_sampled_tokens(tmp_path: Path):
    trainer = rounds_trainer(tmp_path, objective="grpo", max_steps=1)
    trainer.train()
    samples = {(s["prompt"], s["completion"]) for s in lines(tmp_path / "completions.jsonl")}
    tokenizer = tiny_tokenizer()
    for example in trainer.train_examples:
        text = tokenizer.decode(example.completions[0], skip_special_tokens=True)
        assert (tokenizer.decode(example.prompt_ids), text) in samples
    micro = trainer.plan.window(0, 0)[0]
    batch = collate(trainer.train_examples, micro, find_objective("grpo"), pad_token_id=0, max_length=32)
    assert len(batch.columns["advantages"]) == 8


SAVING = {"save_strategy": "steps", "save_steps": 1}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, HumanlineTrainer]]:
    """The folder and the trainer of an objective's uninterrupted run."""

    @functools.cache
    def ran(objective: str) -> tuple[Path, HumanlineTrainer]:
        folder = tmp_path_factory.mktemp(objective)
        trainer = rounds_trainer(folder, objective=objective, **SAVING)
        trainer.train()
        return folder, trainer

    return ran


@pytest.mark.parametrize(("objective", "step"), [("dpo", 1), ("kto", 3), ("grpo", 1), ("grpo", 2)])
def test_a_resumed_run_has_the_samples_and_weights_of_the_uninterrupted_one(
    tmp_path: Path, whole: Callable[[str], tuple[Path, HumanlineTrainer]], objective: str, step: int
):
    """Step 2 begins a round, and the others are within one."""
    folder, uninterrupted = whole(objective)
    resumed = rounds_trainer(tmp_path, objective=objective, **SAVING)
    newest = tmp_path / f"checkpoint-{step}"
    shutil.copytree(folder / newest.name, newest)
    shutil.copy(folder / "completions.jsonl", tmp_path)
    resumed.train(str(newest))
    assert all(map(torch.equal, weights(uninterrupted), weights(resumed)))
    assert lines(tmp_path / "completions.jsonl") == lines(folder / "completions.jsonl")


def test_a_prompt_of_messages_gets_an_assistant_message(tmp_path: Path):
    seen: list[Any] = []

    def reward(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
        seen.extend(zip(prompts, completions, strict=True))
        return [float(i) for i in range(len(completions))]

    chats = [{"prompt": [{"role": "user", "content": f"w{i}"}]} for i in range(4)]
    rounds_trainer(
        tmp_path, reward, objective="dpo", per_device_train_batch_size=2, max_steps=1, train_dataset=chats
    ).train()
    assert all(prompt in [chat["prompt"] for chat in chats] for prompt, _ in seen)
    assert {message["role"] for _, (message,) in seen} == {"assistant"}


def test_a_prompt_that_fills_max_length_is_dropped_and_counted(tmp_path: Path):
    trainer = rounds_trainer(tmp_path, train_dataset=[*PROMPTS, {"prompt": "w1 " * 40, "wanted": ""}], objective="grpo")
    assert trainer.train_data.summary() == "8 prompts"
    assert trainer.train_data.findings.lines() == [
        "dropped examples (prompt >= max_length): 1, e.g. dataset, example 8"
    ]


def test_a_lora_policy_samples_with_its_adapter_and_has_the_earlier_one_as_reference(tmp_path: Path):
    lora = LoraConfig(target_modules=["q_proj", "v_proj"], r=4, init_lora_weights="gaussian")
    model = get_peft_model(tiny_model(), lora)
    trainer = rounds_trainer(tmp_path, objective="grpo", reference="adapter", model=model)
    trainer.train()
    logged = [line for line in lines(tmp_path / "metrics.jsonl") if "loss" in line]
    assert logged[0]["kl"] == 0 < logged[-1]["kl"]
    assert model.active_adapter == "default"


def test_a_second_training_uses_its_own_samples(tmp_path: Path):
    once_more = {"overwrite_output_dir": True}
    trainer = rounds_trainer(tmp_path, objective="grpo", save_strategy="no", max_steps=1, **once_more)
    seen = []
    loss = trainer.compute_loss

    def spied(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append((inputs.target_ids[0], trainer.train_examples[0].completions[0]))
        return loss(model, inputs, *args, **kwargs)

    trainer.compute_loss = spied
    for _ in range(2):
        trainer.train()
    for ids, completion in seen:
        assert ids[: len(completion)].tolist() == completion.tolist()
    assert seen[0][0].tolist() != seen[1][0].tolist()
