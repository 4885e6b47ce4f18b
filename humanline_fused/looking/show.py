"""HTML page of the log-ratios and clamped tokens of an optimizer step or an example."""

import math
from collections.abc import Sequence
from pathlib import Path

from humanline_fused import durable
from humanline_fused.looking.page import Summary, page
from humanline_fused.looking.scored_sequences import ScoredSequence, sequences_of
from humanline_fused.looking.stored_run import (
    StoredRun,
    example_of,
    examples_of,
    newest_with_samples,
    open_run,
    reading,
)
from humanline_fused.looking.token_scores import Compared, Comparison
from humanline_fused.places import refuse_output_file
from humanline_fused.training.run.checkpoint import last_step_of
from humanline_fused.training.run.summary import describe_sampling


def show_run(
    run: Path,
    *,
    step: int | None = None,
    example: int | None = None,
    checkpoint: int | None = None,
    model: str | None = None,
    dataset: str | None = None,
    output: Path | None = None,
) -> Path:
    """Write the page.

    Args:
        run: the run's folder.
        step: optimizer step (from 0) whose examples to show, scored with the weights before it, ``checkpoint-STEP``;
            default that of the newest complete checkpoint, in rounds of the newest whose round has samples.
        example: alternatively, index of one example in the training data (from 0, dropped examples not counted).
        checkpoint: with ``example``: step of the checkpoint; default the newest complete one.
        model, dataset: replace those in the run's settings; needed if they were given in memory.
        output: the file; default ``show-step-STEP.html`` or ``show-example-EXAMPLE.html`` in the run's folder.

    Returns:
        Path of the page.

    Raises:
        ValueError, OSError: ``step`` and ``example`` are both given, ``output`` cannot be written, the run has no such
            checkpoint or example, its data have changed, or the settings name no model or dataset.

    >>> show_run(Path("runs/demo/humanline"), step=20)  # doctest: +SKIP
    PosixPath('runs/demo/humanline/show-step-20.html')
    """
    if step is not None and example is not None:
        raise ValueError(f"expected either step or example, got {step} and {example}")
    if output is not None:
        refuse_output_file(output)
    if step is None and checkpoint is None and example is None:
        step = newest_with_samples(run)
    stored = open_run(run, checkpoint if step is None else step, model=model, dataset=dataset)
    examples, micros = examples_of(stored, stored.step) if example is None else example_of(stored, example)
    compared = Comparison(stored, examples, micros).compare()
    ids = [i for micro in micros for i in micro.ids]
    sequences = list(sequences_of(examples, ids, compared, stored.config, stored.objective, stored.tokenizer))
    name = f"step-{stored.step}" if example is None else f"example-{example}"
    file = output or run / f"show-{name}.html"
    text = page(summarise(stored, compared, sequences, example), sequences)
    with durable.writing_output(file) as opened:
        opened.write(text.encode())
    return file


def summarise(run: StoredRun, compared: Compared, sequences: Sequence[ScoredSequence], example: int | None) -> Summary:
    """Return the page's summary of the run and of all tokens."""
    config, step = run.config, run.step
    tokens = sum(len(s.log_ratio) for s in sequences)
    low, high = (
        sum(int(side.sum()) for side in sides) for sides in ([s.low for s in sequences], [s.high for s in sequences])
    )
    count = len({s.example for s in sequences})
    with reading(run.checkpoint):
        last = step >= last_step_of(run.checkpoint)
    if example is not None:
        shown = f"example {example} of the training data (from 0)"
    elif last:
        shown = (
            f"the {count} examples that would have followed: the run ended after {step} steps, and has no loss of these"
        )
    else:
        shown = (
            f"the {count} examples of optimizer step {step} (from 0; its loss is in the log line of step {step + 1})"
        )
    beta = f", β = {config.beta:g}" if run.objective.has_implicit_reward else ""
    facts = [
        ("run", str(run.folder.resolve())),
        ("objective", f"{run.objective.name}{beta}"),
        ("shown", f"{shown}: {len(sequences)} sequences, {tokens} tokens that count"),
        (
            "policy π",
            f"{run.checkpoint.name}: the weights after {step} updates, {'the last' if last else f'before step {step}'}",
        ),
        ("reference", compared.who),
        ("k", "none, never synced" if config.sync_every is None else f"{config.sync_every} steps between two syncs"),
        ("bounds", _bounds(run)),
        ("clamped", f"{share(low + high, tokens)} of the tokens: {low} below the lower bound, {high} above the upper"),
    ]
    place = f"step {step}" if example is None else f"example {example}, at step {step}"
    note = "" if compared.as_trained else _note(compared, step, last and example is None)
    return Summary(f"{run.folder.resolve().name}, {place}: log-ratios of the tokens", facts, note)


def share(part: int, whole: int) -> str:
    """Return a count with its total and its percentage.

    >>> share(3, 8)
    '3 of 8 (37.50 %)'
    """
    return f"{part} of {whole} ({100 * part / max(whole, 1):.2f} %)"


def _bounds(run: StoredRun) -> str:
    clamp = run.config.humanline_clamp
    if sampling := describe_sampling(run.config):
        return f"none: {sampling}; its draws are not shown"
    if clamp is None:
        return "none: the clamp is off"
    low, high = clamp.log_epsilon_P, clamp.log_epsilon_R
    return f"[{low:g}, {high:g}] nats of log-ratio: ratios from {math.exp(low):.3g} to {math.exp(high):.3g}"


def _note(compared: Compared, step: int, last: bool) -> str:
    if last:
        return f"Compared with {compared.who}. No loss compares with anything here: the run ended after {step} steps."
    return (
        f"Compared with {compared.who}, not with what a loss at step {step} compares with: the checkpoint keeps no "
        "reference scores of these tokens for that step."
    )
