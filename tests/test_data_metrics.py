"""humanline/mean_ratio, humanline/surplus and humanline/data_drift of a run, from scores that exist anyway."""

import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from humanline_fused.functional import token_logp_and_entropy
from humanline_fused.perception.diagnostics import data_drift, mean_ratio, surplus_surprisal
from humanline_fused.training.data.batch import Batch
from humanline_fused.training.objectives.objective import LossResult
from humanline_fused.training.run.data_metrics import DataMetrics, steps_with_drift
from humanline_fused.training.run.manifest import seal
from humanline_fused.training.run.resumable import RUN_STATE
from humanline_fused.training.scoring import Scorer
from tests.batches import logits_of
from tests.error_budget import FLOAT32_EPSILON
from tests.tiny_model import records, tiny_config, tiny_model, tiny_trainer, trained

NAMES = ("humanline/mean_ratio", "humanline/surplus", "humanline/data_drift")


def logged(trainer: Any, name: str) -> list[float | None]:
    return [line.get(name) for line in trainer.state.log_history if "loss" in line]


class Scored:
    """The scores of each step's micro-batch, in order: policy, reference, reference's entropy and mask."""

    def __init__(self) -> None:
        self.steps: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    def watch(self, scorer: Scorer, batch: Batch, out: LossResult) -> None:
        assert batch.ref_entropy is not None
        self.steps.append((out.logp.double(), out.ref_logp.double(), batch.ref_entropy, batch.loss_mask))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        return iter(self.steps)


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> Scored:
    seen, compute = Scored(), Scorer.loss

    def record(scorer: Scorer, model: torch.nn.Module, batch: Batch) -> Any:
        given = compute(scorer, model, batch)
        seen.watch(scorer, batch, given[1])
        return given

    monkeypatch.setattr(Scorer, "loss", record)
    return seen


def near(expected: list[float], tokens: int = 64) -> Any:
    """Return ``expected`` within the rounding of float32 sums of ``tokens`` log-probs of up to 8 nats."""
    return pytest.approx(expected, abs=8 * tokens * FLOAT32_EPSILON)


# The values


@pytest.mark.parametrize("layout", ["padded", "shared_prompt"])
def test_each_step_has_the_diagnostics_of_its_tokens(tmp_path: Path, scored: Scored, objective: str, layout: str):
    trainer = trained(tmp_path, objective=objective, sync_every=2, layout=layout, max_steps=4)
    ratios = [mean_ratio(logp - ref, mask).item() for logp, ref, _, mask in scored]
    surpluses = [surplus_surprisal(ref, entropy, mask).item() for _, ref, entropy, mask in scored]
    assert len(ratios) == 4
    assert logged(trainer, NAMES[0]) == near(ratios)
    assert logged(trainer, NAMES[1]) == near(surpluses)
    # KTO's reference scores the mismatched pairs in the same row, so that the last bits differ from training's.
    alike = layout == "padded" or not trainer.objective.mismatched
    assert ratios[:1] == ([1] if alike else near([1]))
    assert all(ratio != 1 for ratio in ratios[1:])


def test_the_entropy_is_that_of_the_reference_s_distribution(tmp_path: Path, scored: Scored):
    trainer = trained(tmp_path, reference="frozen", max_steps=2)
    batch = trainer._window(1)[0]
    logits = logits_of(tiny_model().eval(), batch)
    expected = token_logp_and_entropy(logits, batch.target_ids, batch.loss_mask).entropy
    torch.testing.assert_close(scored.steps[1][2], expected.detach())


def test_against_a_frozen_reference_the_drift_is_paired(tmp_path: Path, scored: Scored):
    trainer = trained(tmp_path, reference="frozen")
    expected = [data_drift(logp, ref, mask).item() for logp, ref, _, mask in scored]
    assert logged(trainer, NAMES[2]) == near(expected)
    assert expected[0] == 0 != expected[5]


def drifts(steps: list[tuple[Tensor, ...]], sync_every: int) -> list[float]:
    """Return the drift of scored steps: each one's drop below the reference, added up over the syncs."""
    found, at_sync = [], 0.0
    for step, (logp, ref, _, mask) in enumerate(steps):
        found.append(at_sync + data_drift(logp, ref, mask).item())
        if step % sync_every == 0:
            at_sync = found[-1]
    return found


@pytest.mark.parametrize("sync_every", [1, 2, 3])
def test_with_a_synced_reference_the_drops_add_up_over_the_syncs(tmp_path: Path, scored: Scored, sync_every: int):
    trainer = trained(tmp_path, sync_every=sync_every)
    assert logged(trainer, NAMES[2]) == near(drifts(scored.steps, sync_every))


def test_the_syncs_add_up_to_the_drop_since_the_start(tmp_path: Path, scored: Scored):
    """Where every step has the same pairs, each reference cancels: what is left compares with the initial policy."""
    pairs = records("dpo", 2)
    trainer = trained(tmp_path, train_dataset=pairs, per_device_train_batch_size=2, sync_every=2)
    first = scored.steps[0][1]
    since = [data_drift(logp[mask], first[mask]).item() for logp, _, _, mask in scored]
    assert logged(trainer, NAMES[2]) == near(since)


def test_a_log_line_pools_the_tokens_of_its_steps(tmp_path: Path, scored: Scored):
    settings: dict[str, Any] = {"gradient_accumulation_steps": 2, "logging_steps": 3, "logging_first_step": False}
    trainer = trained(tmp_path, **settings)
    logp, ref, entropy, mask = (
        [torch.cat([part[i].flatten() for part in half]) for half in (scored.steps[:6], scored.steps[6:])]
        for i in range(4)
    )
    expected = [mean_ratio(lp - rf, m).item() for lp, rf, m in zip(logp, ref, mask, strict=True)]
    surpluses = [surplus_surprisal(*values).item() for values in zip(ref, entropy, mask, strict=True)]
    assert logged(trainer, NAMES[0]) == near(expected, 400)
    assert logged(trainer, NAMES[1]) == near(surpluses, 400)
    flat = [[part.flatten() for part in micro_batch] for micro_batch in scored]
    whole = [tuple(map(torch.cat, zip(*flat[i : i + 2], strict=True))) for i in range(0, 12, 2)]
    tokens = [int(step[3].sum()) for step in whole]
    weighted = [drift * number for drift, number in zip(drifts(whole, 1), tokens, strict=True)]
    lines = [sum(weighted[i : i + 3]) / sum(tokens[i : i + 3]) for i in (0, 3)]
    assert logged(trainer, NAMES[2]) == near(lines, 400)


# References, heads, losses


def test_look_ahead_and_copy_give_the_same_bits(tmp_path: Path, objective: str):
    settings: dict[str, Any] = {"objective": objective, "sync_every": 2, "max_steps": 4}
    ahead, copied = (trained(tmp_path / kind, reference=kind, **settings) for kind in ("lookahead", "copy"))
    for name in NAMES:
        assert None not in logged(ahead, name)
        assert logged(ahead, name) == logged(copied, name)


def test_fused_head_and_logits_agree(tmp_path: Path):
    fused, plain = (trained(tmp_path / head, head=head, sync_every=2, max_steps=4) for head in ("fused", "logits"))
    for name in NAMES:
        assert logged(fused, name) == pytest.approx(logged(plain, name), abs=1e-4)


def test_an_adapter_reference_has_them_too(tmp_path: Path):
    peft = pytest.importorskip("peft")

    def run(kind: str) -> Any:
        config = peft.LoraConfig(target_modules=["q_proj", "v_proj"], r=2, init_lora_weights="gaussian")
        model = peft.get_peft_model(tiny_model(), config)
        return trained(tmp_path / kind, model=model, reference=kind, sync_every=2, max_steps=4)

    runs = [run(kind) for kind in ("adapter", "lookahead")]
    assert [logged(runs[0], name) for name in NAMES] == [logged(runs[1], name) for name in NAMES]


def test_the_metrics_do_not_change_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with_entropy = trained(tmp_path / "with", max_steps=3)
    score = Scorer.score
    monkeypatch.setattr(Scorer, "score", lambda self, model, batches, with_entropy: score(self, model, batches))
    without = trained(tmp_path / "without", max_steps=3)
    assert all(
        torch.equal(*pair) for pair in zip(with_entropy.model.parameters(), without.model.parameters(), strict=True)
    )
    assert logged(without, NAMES[1]) == [None] * 3
    assert logged(without, NAMES[0]) == logged(with_entropy, NAMES[0])


def test_they_cost_no_further_forward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    forwards: list[str] = []
    forward = Scorer._forward
    monkeypatch.setattr(Scorer, "_forward", lambda self, *given: forwards.append("") or forward(self, *given))
    trained(tmp_path, max_steps=2)
    assert len(forwards) == 4


def test_an_evaluation_has_none_of_them(tmp_path: Path):
    trainer = trained(
        tmp_path, eval_dataset=records("dpo", 3, seed=1), eval_strategy="steps", eval_steps=1, max_steps=2
    )
    evaluations = [line for line in trainer.state.log_history if "eval_loss" in line]
    assert len(evaluations) == 2
    assert not any(f"eval_{name}" in line for line in evaluations for name in NAMES)


# Resumed runs


def resumed_from(tmp_path: Path, checkpoint: str, **settings: Any) -> Any:
    """Return a trainer that resumed from a checkpoint of the run in ``tmp_path``, copied to another folder."""
    shutil.copytree(tmp_path / checkpoint, tmp_path / "again" / checkpoint)
    trainer = tiny_trainer(tmp_path / "again", **settings)
    trainer.train("auto")
    return trainer


@pytest.mark.parametrize("reference", ["lookahead", "copy", "frozen"])
def test_a_resumed_run_keeps_its_drift(tmp_path: Path, reference: str):
    settings: dict[str, Any] = {"reference": reference, "save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    whole = trained(tmp_path, **settings)
    resumed = resumed_from(tmp_path, "checkpoint-2", **settings)
    for name in NAMES:
        assert None not in logged(resumed, name)
        assert logged(resumed, name) == logged(whole, name)


def test_a_second_run_of_a_trainer_starts_its_drift_afresh(tmp_path: Path):
    trainer = trained(tmp_path, max_steps=4, overwrite_output_dir=True)
    trainer.train()
    assert logged(trainer, NAMES[2])[0] == 0


def test_a_checkpoint_of_an_earlier_version_leaves_out_what_it_lacks(tmp_path: Path):
    settings: dict[str, Any] = {"sync_every": 4, "save_strategy": "steps", "save_steps": 3}
    whole = trained(tmp_path, **settings)
    file = tmp_path / "checkpoint-3" / RUN_STATE
    state = torch.load(file, weights_only=True)
    del state["data_metrics"]
    for scores in state["pending"].values():
        for example in scores.values():
            del example["ref_entropy"]
    torch.save(state, file)
    seal(file.parent)
    resumed = resumed_from(tmp_path, "checkpoint-3", **settings)
    assert logged(resumed, NAMES[0]) == logged(whole, NAMES[0])
    surplus = logged(whole, NAMES[1])
    assert logged(resumed, NAMES[1]) == [*surplus[:3], None, None, surplus[5]]
    assert logged(resumed, NAMES[2]) == [*logged(whole, NAMES[2])[:3], None, None, None]


# Steps with a drift, and ranks


@pytest.mark.parametrize(
    ("settings", "given", "expected"),
    [
        ({"sync_every": 3}, {}, [*range(9)]),
        ({"reference": "copy", "sync_every": 2}, {"reference_model": True}, [*range(1, 9)]),
        ({"sync_every": 3, "disable_dropout": False}, {}, []),
        ({"reference": "frozen"}, {}, [*range(9)]),
        ({"reference": "frozen"}, {"reference_model": True}, []),
        ({"sync_every": 3}, {"rounds": True}, []),
    ],
)
def test_a_step_has_a_drift_where_the_reference_is_an_earlier_policy(
    tmp_path: Path, settings: dict[str, Any], given: dict[str, bool], expected: list[int]
):
    asked = {"reference_model": False, "rounds": False} | given
    steps = steps_with_drift(tiny_config(tmp_path, **settings), **asked)
    assert [step for step in range(9) if step in steps] == expected


def out_of(logp: list[float], ref: list[float]) -> LossResult:
    return LossResult(torch.zeros(()), torch.tensor([logp]), torch.tensor([ref]), {})


BOTH, ONE = torch.tensor([[True, True]]), torch.tensor([[True, False]])


def test_ranks_add_up_their_sums():
    """Step 0 loses 3 nats over 3 tokens and is synced; step 1 loses 2 more on each of 4."""
    ranks = [DataMetrics(range(9), sync_every=1) for _ in range(2)]
    ranks[0].update(0, out_of([-1.0, -1.0], [-1.0, -1.0]), None, BOTH)
    ranks[1].update(0, out_of([-4.0, math.nan], [-1.0, math.nan]), None, ONE)
    for rank in ranks:
        rank.update(1, out_of([-3.0, -3.0], [-1.0, -1.0]), None, BOTH)
    whole = sum(torch.stack([*rank.sums.values()]) for rank in ranks)
    expected = {"humanline/data_drift": pytest.approx((3 * 1 + 4 * 3) / 7)}
    assert [rank.drain(lambda _: whole) for rank in ranks] == [expected] * 2
    assert [rank.at_sync for rank in ranks] == [3, 3]


def test_a_checkpoint_between_two_log_lines_has_the_syncs_since_the_last():
    metrics = DataMetrics(range(9), sync_every=2)
    for step in range(4):
        metrics.update(step, out_of([-2.0, -2.0], [-1.0, -1.0]), None, BOTH)
    again, half = (DataMetrics(range(9), sync_every=2) for _ in range(2))
    for ranks, one in enumerate((again, half), start=1):
        one.load_state_dict(metrics.state_dict(lambda sums: sums), torch.device("cpu"), world_size=ranks)
    assert all(torch.equal(2 * half.sums[step], again.sums[step]) for step in range(4))
    for one in (metrics, again):
        one.update(4, out_of([-2.0, -2.0], [-1.0, -1.0]), None, BOTH)
        assert one.drain(lambda sums: sums) == {"humanline/data_drift": (1 + 2 + 2 + 3 + 3) / 5}
    assert again.at_sync == metrics.at_sync == 3


def test_without_a_step_or_a_token_there_is_nothing_to_report():
    metrics = DataMetrics(range(1, 3), sync_every=1)
    assert metrics.drain(lambda sums: sums) == {}
    for step, counted in ((0, BOTH), (1, ~BOTH)):  # step 0 has no drift, and step 1 no token
        metrics.update(step, out_of([-2.0, -2.0], [-1.0, -1.0]), None, counted)
        assert metrics.drain(lambda sums: sums) == {}
