"""GRPO on given rewards: the divisor of advantages, and groups without signal."""

from pathlib import Path
from statistics import pstdev

import pytest
import torch

from humanline_fused.training.data.advantages import advantages
from humanline_fused.training.data.findings import NO_SIGNAL, NO_SIGNAL_DROPPED
from humanline_fused.training.data.prepare import PreparedData
from tests.tiny_model import losses, records, tiny_trainer, trained


def test_grpos_advantages_may_be_scaled_over_the_steps_global_batch(tmp_path: Path):
    settings = {"objective": "grpo", "scale_rewards": "batch", "per_device_train_batch_size": 1}
    trainer = trained(tmp_path, max_steps=1, gradient_accumulation_steps=4, **settings)
    examples = [trainer.train_examples[i] for ids in trainer.plan.global_window(0) for i in ids]
    scale = pstdev(e.reward for e in examples) + 1e-2
    assert scale > 2e-2  # a micro-batch of one has a standard deviation of 0
    tokens = [len(e.completions[0]) for e in examples]
    over_tokens = -sum(n * e.weight / scale for n, e in zip(tokens, examples, strict=True)) / sum(tokens)
    torch.testing.assert_close(torch.tensor(losses(trainer)[0]), torch.tensor(over_tokens))


def test_the_completions_of_a_prompt_stand_together_in_a_step(tmp_path: Path):
    sizes = [3, 2, 4, 3, 2]
    rows = [
        {"prompt": f"w{i}", "completions": [f" w{j}" for j in range(size)], "rewards": [*range(size)]}
        for i, size in enumerate(sizes)
    ]
    trainer = tiny_trainer(tmp_path, objective="grpo", train_dataset=rows, per_device_train_batch_size=14)
    for epoch in range(2):
        taken = [trainer.train_examples[i] for i in trainer.plan.examples(epoch)]
        prompts = [int(example.prompt_ids[0]) for example in taken]
        assert prompts == [prompt for prompt in dict.fromkeys(prompts) for _ in range(prompts.count(prompt))]
        assert sorted(prompts.count(prompt) for prompt in set(prompts)) == sorted(sizes)


def test_held_out_rewards_are_scaled_over_all_of_them(tmp_path: Path):
    settings = {"objective": "grpo", "eval_dataset": records("grpo", 6, 5)}
    plain, scaled = (tiny_trainer(tmp_path / s, scale_rewards=s, **settings) for s in ("none", "batch"))
    scale = pstdev(e.reward for e in plain.eval_examples) + 1e-2
    assert [e.weight for e in scaled.eval_examples] == [e.weight / scale for e in plain.eval_examples]


@pytest.mark.parametrize(("beta", "left"), [(0.0, 8), (0.5, 10)])
def test_groups_of_equal_rewards_are_left_out_unless_the_kl_has_a_gradient(tmp_path: Path, beta: float, left: int):
    trainer = tiny_trainer(tmp_path, objective="grpo", beta=beta)
    assert isinstance(trainer.train_data, PreparedData)
    assert trainer.train_data.findings.count(NO_SIGNAL) + trainer.train_data.findings.count(NO_SIGNAL_DROPPED) == 1
    assert len(trainer.train_examples) == left


def test_the_summary_of_a_run_counts_the_groups_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    trained(tmp_path, objective="grpo", beta=0.0, max_steps=1)
    line = "data: 8 examples; groups without signal, dropped with beta=0: 1, e.g. dataset, example "
    assert line in capsys.readouterr().out


def test_equal_rewards_have_no_advantage_even_if_their_mean_is_rounded():
    assert advantages([0.05] * 3, "group") == [0.0] * 3
    assert advantages([0.47] * 7, "none") == [0.0] * 7
    for rewards in ([0.1, 0.2, 0.3], [0.0, 0.1, 0.2]):
        low, middle, high = advantages(rewards, "group")
        assert low < middle == 0 < high


def test_a_small_difference_of_rewards_is_an_advantage():
    assert advantages([1.0, 1.0 + 2**-40], "none") == [-(2**-41), 2**-41]


def test_a_run_does_not_resume_with_another_scaling(tmp_path: Path):
    settings = {"objective": "grpo", "max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    trained(tmp_path, scale_rewards="none", **settings)
    with pytest.raises(ValueError, match=r"'scale_rewards': 'none'.*got.*'scale_rewards': 'batch'"):
        trained(tmp_path, scale_rewards="batch", resume_from_checkpoint="auto", **settings)
