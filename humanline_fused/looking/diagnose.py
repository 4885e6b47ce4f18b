"""Whether data suit a model before it is trained on them, and how far a trained one is from its reference."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from humanline_fused.looking.histograms import draw_histograms
from humanline_fused.looking.scored_data import DataScorer, ScoredData, check_same_tokens, evenly
from humanline_fused.looking.stored_run import StoredRun, open_run
from humanline_fused.looking.token_scores import Comparison
from humanline_fused.looking.verdicts import diagnostics, table
from humanline_fused.training.config import HumanlineConfig
from humanline_fused.training.data.examples import Example
from humanline_fused.training.data.prepare import PreparedData, prepare
from humanline_fused.training.inspection import objective_of
from humanline_fused.training.objectives.objective import Objective
from humanline_fused.training.run_data import RunData
from humanline_fused.training.start import check_data, load_policy
from humanline_fused.types import PAPER_CLAMP


@dataclass(frozen=True)
class Subject:
    """What is diagnosed.

    Attributes:
        config, objective: as of a run on the data.
        model, tokenizer: the model and its tokenizer.
        examples: the data.
        name: the model and the data, for the first line.
        other: the other model, and what scoring with it is done in; None without one.
        role: ``source`` or ``reference``; empty without another model.
    """

    config: HumanlineConfig
    objective: Objective
    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    examples: Sequence[Example]
    name: str
    other: tuple[nn.Module, AbstractContextManager[Any] | None] | None = None
    role: str = ""


def diagnose(
    *,
    model: str | None = None,
    dataset: str | None = None,
    run: Path | None = None,
    source: str | None = None,
    reference: str | None = None,
    output_dir: Path = Path("runs/diagnose"),
    limit: int = 1024,
    batch_size: int = 8,
    **settings: Any,
) -> Iterator[str]:
    """Score data and yield where the picture will be, what is said about the data, and the path of the picture.

    Args:
        model, dataset: folders or names; both, or ``run``.
        run: folder of a run: its newest checkpoint against the policy at its start, on its data.
        source: the model that wrote the data.
        reference: the model that ``model`` is compared with.
        output_dir: folder of ``diagnose.png``.
        limit: maximum number of examples, evenly chosen.
        batch_size: examples of a forward pass.
        settings: ``objective`` (default: the first that accepts the data), and any other fields of the config.

    Raises:
        ValueError, TypeError, OSError: a setting, a file or the data cannot be used; the message says what was
            expected.
    """
    if source and reference:
        raise ValueError("--source and --reference: expected one of them, got both")
    for name, value in (("--limit", limit), ("--batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name}: expected an integer >= 1, got {value}")
    image = output_dir / "diagnose.png"
    if run is not None:
        if given := [f"--{name}" for name, value in (("model", model), ("dataset", dataset)) if value]:
            raise ValueError(f"--run: expected no {given[0]}, because a run's folder names its own, got both")
        if source or reference:
            raise ValueError("--run: expected neither --source nor --reference: it is compared with its start")
        subject = _of_run(open_run(run))
    elif model is None or dataset is None:
        raise ValueError("expected --model and --dataset, or --run")
    else:
        subject = _of_model(model, dataset, source, reference, output_dir, settings)
    yield f"writes {image}{', in place of the one there' if image.exists() else ''}"
    yield from _said(subject, limit, batch_size, image)


def _said(subject: Subject, limit: int, batch_size: int, image: Path) -> Iterator[str]:
    chosen = evenly(len(subject.examples), limit)
    data = score_data(subject, chosen, batch_size)
    clamp = subject.config.humanline_clamp or PAPER_CLAMP
    which = "all" if len(chosen) == len(subject.examples) else f"{len(chosen)} (evenly chosen, --limit) of"
    counted = f"{which} {len(subject.examples)} examples, {len(data.logp)} sequences, {len(data.tokens)} tokens"
    yield f"{subject.name} ({subject.objective.name}): {counted}\n"
    yield table(diagnostics(data, clamp, subject.role))
    draw_histograms(data, clamp, subject.role, image)
    yield f"\n{image}"


def score_data(subject: Subject, chosen: Sequence[int], batch_size: int) -> ScoredData:
    """Return the scores of the chosen examples.

    Raises:
        ValueError: no token of the chosen examples counts.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    scorer = DataScorer(subject.config, subject.objective, subject.examples, chosen, device, batch_size)
    logp, entropy = scorer.score(subject.model, subject.tokenizer, progress="Scoring")
    if not logp:
        raise ValueError(f"{subject.name}: expected at least one token that counts, got none in {len(chosen)} examples")
    if subject.other is None:
        return ScoredData(logp, entropy)
    other, scope = subject.other
    return ScoredData(logp, entropy, scorer.score(other, subject.tokenizer, scope, f"Scoring ({subject.role})")[0])


def _of_model(
    model: str, dataset: str, source: str | None, reference: str | None, output_dir: Path, settings: dict[str, Any]
) -> Subject:
    kwargs = {"split": settings.get("dataset_split", "train"), "columns": settings.get("columns")}
    settings["objective"] = settings.get("objective") or objective_of(dataset, **kwargs).name
    config = HumanlineConfig(
        output_dir=str(output_dir),
        model=model,
        dataset=dataset,
        use_cpu=not torch.cuda.is_available(),
        report_to="none",
        **settings,
    )
    objective = config.make_objective()
    policy, tokenizer = load_policy(model, None, config)
    role, name = ("source", source) if source else ("reference", reference)
    other = None
    if name:
        check_same_tokens(model, tokenizer, name, f"--{role}")
        other = load_policy(name, tokenizer, config)[0]
    data = _prepared(dataset, tokenizer, config, objective, kwargs)
    check_data(policy, other, RunData(data, None, []), tokenizer, config, objective)
    pair = None if other is None else (other, None)
    title = f"{model} on {dataset}" + (f", {role} {name}" if name else "")
    return Subject(config, objective, policy, tokenizer, data.examples, title, pair, role if name else "")


def _prepared(
    dataset: str,
    tokenizer: PreTrainedTokenizerBase,
    config: HumanlineConfig,
    objective: Objective,
    kwargs: dict[str, Any],
) -> PreparedData:
    return prepare(
        dataset,
        tokenizer,
        objective,
        max_length=config.max_length,
        scale_rewards=config.scale_rewards,
        drop_no_signal=objective.drops_ties(config),
        train_on=config.train_on,
        **kwargs,
    )


def _of_run(run: StoredRun) -> Subject:
    if run.config.rollout_every:
        raise ValueError(
            f"{run.folder}: expected a run on a dataset, got one in rounds, whose data are new in every round"
        )
    comparison = Comparison(run, run.examples(), [])
    name = f"{run.checkpoint} on the data of {run.folder}, reference: the policy at its start"
    settings = run.config, run.objective, comparison.policy, run.tokenizer, comparison.examples, name
    return Subject(*settings, other=comparison.start(), role="reference")
