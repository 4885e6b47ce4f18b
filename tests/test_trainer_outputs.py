"""What a run writes: metrics, its summary and the saved model."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from humanline_fused.training import HumanlineTrainer
from humanline_fused.training.objectives.metrics import Weighted
from humanline_fused.training.run.loop_state import LoopState
from humanline_fused.training.run.metrics_log import Meter, MetricsFile
from tests.error_budget import FLOAT32_EPSILON, rounding_of_sum
from tests.tiny_model import losses, records, tiny_config, tiny_model, tiny_tokenizer, trained

METRICS = {
    "dpo": ("rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins", "logps/chosen"),
    "kto": ("rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen", "logps/rejected", "kl"),
    "grpo": ("kl", "clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean"),
}


def test_metrics_have_trls_names_and_are_always_written_with_step_and_seconds(tmp_path: Path, objective: str):
    trainer = trained(tmp_path, objective=objective, max_steps=3)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == [1, 2, 3]
    assert [line["loss"] for line in steps] == losses(trainer)
    assert [line["seconds"] for line in lines] == sorted(line["seconds"] for line in lines)
    shares = ("humanline/unclamped", "humanline/clamped_low", "humanline/clamped_high")
    for name in (*METRICS[objective], *shares, "num_tokens", "grad_norm", "learning_rate"):
        assert any(name in line for line in steps), name
    for line in steps:
        assert sum(line[name] for name in shares) == pytest.approx(1, abs=len(shares) * FLOAT32_EPSILON)


def test_a_log_line_is_the_mean_over_all_steps_since_the_last(tmp_path: Path):
    settings = {"gradient_accumulation_steps": 2, "max_steps": 4}
    every = trained(tmp_path / "every", **settings)
    second = trained(tmp_path / "second", logging_steps=2, logging_first_step=False, **settings)
    for name in ("loss", "rewards/margins", "logps/chosen"):
        single = [line[name] for line in every.state.log_history if name in line]
        pooled = [line[name] for line in second.state.log_history if name in line]
        for mean, steps in zip(pooled, (single[:2], single[2:]), strict=True):
            assert mean == pytest.approx(sum(steps) / 2, abs=rounding_of_sum(*steps))


def weighted(total: float, weight: float) -> Weighted:
    return Weighted(torch.tensor(total), torch.tensor(weight))


def test_a_stored_mean_goes_on_over_any_number_of_ranks():
    meter, restored = Meter(), Meter()
    meter.update({"kl": weighted(6.0, 2.0), "logps/chosen": weighted(0.0, 0.0)})
    restored.load_state_dict(meter.state_dict(lambda sums: 2 * sums), torch.device("cpu"), world_size=2)
    restored.update({"kl": weighted(0.0, 1.0)})
    assert restored.drain(lambda sums: 2 * sums) == {"kl": 2.0}


def test_a_resumed_file_keeps_the_lines_of_its_checkpoint_and_their_seconds(tmp_path: Path):
    steps = [(1, 5.0), (2, 70.0), (2, 80.0), (3, 90.0)]
    file = tmp_path / "metrics.jsonl"
    file.write_text("".join(json.dumps({"step": step, "seconds": seconds}) + "\n" for step, seconds in steps))
    known = [{"step": 1}, {"step": 2}]
    state = SimpleNamespace(global_step=2, max_steps=4, is_world_process_zero=True, log_history=known)
    resumed = MetricsFile(file, pytest.fail)
    resumed.on_train_begin(None, state, None)
    resumed.on_log(None, SimpleNamespace(global_step=3), None, {"loss": 1.0})
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert 70 <= lines[-1]["seconds"] < 80


def loop_of(step: int, **done: Any) -> LoopState:
    """Return the state of two ranks' loop after ``step`` steps with a loss of 6 in all."""
    args = SimpleNamespace(device=torch.device("cpu"), world_size=2)
    private = {"_tr_loss": torch.tensor(1.0), "_total_loss_scalar": 6.0, "_globalstep_last_logged": 4}
    trainer: Any = SimpleNamespace(args=args, state=SimpleNamespace(global_step=step), **private, **done)
    return LoopState(trainer, Meter())


def test_without_a_stored_loop_the_mean_loss_is_that_of_the_steps_since():
    loop = loop_of(5)
    loop.meter.update({"kl": weighted(1.0, 1.0)})
    loop.on_train_begin(loop.trainer.args, SimpleNamespace(global_step=2), None)
    assert loop.meter.sums == {}
    assert loop.mean_loss() == 6.0 / 3
    stored = loop.state_dict(lambda sums: 2 * sums)
    assert (stored["first_step"], stored["loss"]) == (2, 1.0)


@pytest.mark.parametrize(("step", "epoch", "ends"), [(4, 1.0, True), (5, 1.25, False), (6, 1.5, True)])
def test_a_run_resumed_at_the_end_of_an_epoch_or_of_all_steps_ends_it_first(step: int, epoch: float, ends: bool):
    done: list[str] = []
    handler = SimpleNamespace(on_epoch_end=lambda *_: done.append("end"))
    end = {"callback_handler": handler, "control": None, "model_wrapped": None}
    end |= {"_load_rng_state": done.append, "_maybe_log_save_evaluate": lambda *_, **__: done.append("log")}
    loop = loop_of(step, **end)
    loop.trainer.state.epoch = epoch
    loop.on_step_end(None, None, None)
    loop.resume("checkpoint")
    loop.load_state_dict(loop.state_dict(lambda sums: sums))
    state = SimpleNamespace(global_step=step, epoch=epoch, max_steps=6)
    loop.on_train_begin(loop.trainer.args, state, None)
    assert done == (["checkpoint", "end", "log"] if ends else [])
    done.clear()
    loop.resume(None)
    loop.on_train_begin(loop.trainer.args, state, None)
    assert done == []


def test_values_that_are_not_finite_are_null_in_the_metrics(tmp_path: Path):
    trainer = trained(tmp_path, max_steps=1)
    trainer.log({"loss_of_a_broken_run": math.nan, "its_gradient": math.inf})
    last = (tmp_path / "metrics.jsonl").read_text().splitlines()[-1]
    assert '"loss_of_a_broken_run": null, "its_gradient": null' in last


def test_a_run_begins_with_a_summary_of_its_settings_and_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    group = {"prompt": "w1 w2", "completions": [" w3", " w4 w5 w6"], "rewards": [1, 1]}
    long = group | {"prompt": "w1 w2 w3 w4 w5"}
    settings = {"objective": "grpo", "sync_every": 4, "max_steps": 1, "max_length": 5, "impl": "eager"}
    trained(tmp_path, train_dataset=[group, long], eval_dataset=[group], **settings)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == (
        "grpo: clamp [-1.5, 1.5] nats, scale_rewards=group, beta=0.5, computed by eager (asked for by name)"
    )
    assert lines[4].split("; ") == [
        "data: 2 examples",
        "held out: 2 examples",
        "groups without signal (equal rewards): 2, e.g. dataset, example 0",
        "completions cut at max_length (end of sequence lost): 1, e.g. dataset, example 0",
        "dropped examples (prompt >= max_length): 2, e.g. dataset, example 1",
        "held out: groups without signal (equal rewards): 1, e.g. dataset, example 0",
        "held out: completions cut at max_length (end of sequence lost): 1, e.g. dataset, example 0",
    ]


def test_num_tokens_counts_every_token_of_the_steps(tmp_path: Path):
    trainer = trained(tmp_path, gradient_accumulation_steps=2, max_steps=3)
    steps = [[i for ids in trainer.plan.global_window(step) for i in ids] for step in range(3)]
    examples = [trainer.train_examples[i] for step in steps for i in step]
    seen = sum(len(e.prompt_ids) + len(completion) for e in examples for completion in e.completions)
    assert trainer.state.log_history[2]["num_tokens"] == seen


def test_the_saved_model_loads_with_its_tokenizer_and_gives_the_same_logits(tmp_path: Path):
    trainer = trained(tmp_path, max_steps=1)
    trainer.save_model()
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    ids = tokenizer("w1 w2 w3", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert torch.equal(model.eval()(ids).logits, trainer.model.eval()(ids).logits)


def test_a_config_alone_describes_a_run(tmp_path: Path):
    start, data = tmp_path / "start", tmp_path / "pairs.jsonl"
    tiny_model().save_pretrained(start)
    tiny_tokenizer().save_pretrained(start)
    data.write_text("\n".join(map(json.dumps, records("dpo", 10))))
    args = tiny_config(tmp_path / "run", model=str(start), dataset=str(data), max_steps=3)
    trainer = HumanlineTrainer(args=args)
    trainer.train()
    assert losses(trainer) == losses(trained(tmp_path / "other", max_steps=3))
