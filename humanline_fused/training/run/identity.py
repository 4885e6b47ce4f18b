"""The identity of a run: what a checkpoint and the run that resumes it must have in common."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from humanline_fused.training.config import HumanlineConfig
from humanline_fused.training.data.examples import fingerprint
from humanline_fused.training.data.plan import BatchPlan, StepPlan
from humanline_fused.training.objectives.objective import Objective
from humanline_fused.training.objectives.settings import CLAMP, SAMPLING
from humanline_fused.training.objectives.table import is_in_table, recorded_identity
from humanline_fused.training.online.rollout import Rounds
from humanline_fused.training.run.sharding import engine_of_files
from humanline_fused.training.run_data import RunData
from humanline_fused.training.start import identify


def run_identity(
    config: HumanlineConfig,
    objective: Objective,
    plan: StepPlan,
    data: RunData,
    rounds: Rounds | None,
    policy: PreTrainedModel,
    engine: str,
) -> dict[str, Any]:
    """Engine, model, reference, and all that decides the batches, as JSON."""
    batches = {
        "data": fingerprint(data.train.examples),
        "num_examples": len(data.train.examples),
        **(rounds.identity() if rounds else {}),
        **({"scale_rewards": config.scale_rewards} if objective.form.has_rewards else {}),
        "global_batch_size": plan.sizes.global_batch,
        **({"eval_fraction": data.fraction} if data.fraction else {}),
        **({"groups": plan.units.code} if isinstance(plan, BatchPlan) and plan.units else {}),
        "seed": plan.seed,
        **recorded_identity(objective),
        "max_length": config.max_length,
    }
    if objective.mismatched:  # the mismatched pairs stay within a global micro-batch
        batches["global_micro_batch_size"] = plan.sizes.micro_batch
    settings = {"reference": config.reference, "sync_every": config.sync_every}
    loss = loss_identity(config, objective)
    model = {"model": identify(policy), "adapter": adapter_identity(policy)}
    return {"engine": engine, **model, **settings, "batches": batches, "loss": loss}


def adapter_identity(policy: Any) -> dict[str, Any]:
    """The settings of an adapter that scale its weights, by their names in peft; empty without an adapter."""
    given, scales = getattr(policy, "active_peft_config", None), ("lora_alpha", "use_rslora", "alpha_pattern")
    return {name: getattr(given, name) for name in scales if hasattr(given, name)}


def loss_identity(config: HumanlineConfig, objective: Objective) -> dict[str, Any]:
    """The settings on which the value of the loss depends, as JSON.

    >>> config = HumanlineConfig("run", clamp=False, use_cpu=True)
    >>> loss_identity(config, config.make_objective())["clamp"]
    False
    """
    perceived = SAMPLING if config.perception == "sampling" else CLAMP if config.clamp else CLAMP[:1]
    own = [name for name in objective.own_settings() if name not in ELSEWHERE]
    loss = {name: getattr(config, name) for name in ("entropy_coef", "perception", *perceived, "beta", *own)}
    if not is_in_table(objective):
        loss["objective_kwargs"] = json.loads(json.dumps(config.objective_kwargs))  # a tuple is a list in JSON
    return {"temperature": config.temperature_of_loss, **loss}


def code_of(identity: Mapping[str, Any]) -> str:
    """Return a text that differs for runs with another model, other data or another seed."""
    batches = identity["batches"]
    return json.dumps([identity["model"], batches["data"], batches["seed"]], sort_keys=True)


ELSEWHERE = ("scale_rewards", "one_launch")
"""Own settings of an objective that belong to the batches, or to how the loss is computed."""

OF_EARLIER_VERSIONS = {"temperature": 1.0, "entropy_coef": 0.0}
"""The loss of a checkpoint that does not name it. Of other settings that one does not name, nothing is known."""


def check_identity(saved: dict[str, Any], mine: dict[str, Any], folder: str) -> None:
    """Raise ValueError unless a run with the identity ``mine`` can continue the checkpoint in ``folder``."""
    known = "engine" in saved  # an earlier version did not name it
    written = saved["engine"] if known else engine_of_files(Path(folder))
    if mine["engine"] != written and (known or not mine["engine"].startswith(written)):
        raise ValueError(
            f"expected the engine that {folder} was written with, {written!r}, got {mine['engine']!r}, which keeps the "
            "optimizer's state in another format. Continue with that engine, or start a new run from the weights"
        )
    for name in ("reference", "sync_every"):
        if saved[name] != mine[name]:
            raise ValueError(f"expected {name}={saved[name]!r}, as in {folder}, got {mine[name]!r}")
    for name, now in mine.get("adapter", {}).items():  # of a checkpoint that an earlier version wrote, nothing is known
        then = saved.get("adapter", {}).get(name, now)
        if then != now:
            raise ValueError(f"expected {name}={then!r}, as in {folder}, got {now!r}: the adapter would be another one")
    then, now = (given["batches"].get("eval_fraction", 0) for given in (saved, mine))
    if then != now:
        trained_on = "all its data" if not then else f"all but {then:g} of its data"
        raise ValueError(
            f"expected eval_fraction={then:g}, as in {folder}, which was trained on {trained_on}, got {now:g}"
            + (", the default: set eval_fraction=0" if not then else "")
        )
    saved = {**saved, "loss": {**mine["loss"], **OF_EARLIER_VERSIONS, **saved.get("loss", {})}}
    for part in ("model", "batches", "loss"):
        different = [name for name, value in mine[part].items() if saved[part].get(name) != value]
        if different == ["groups"] and "groups" not in saved[part]:
            raise ValueError(
                f"expected a checkpoint of a run that keeps the completions of a prompt together, got {folder}, of an "
                "earlier version, which shuffled them one by one: its coming batches are others. Continue it with that "
                "version, or start a new run"
            )
        if different:
            then, now = ({name: given[part].get(name) for name in different} for given in (saved, mine))
            raise ValueError(f"expected the {part} that {folder} was written with, {then}, got {now}")
