"""What a run says about itself when it starts."""

from humanline_fused.impl import Choice
from humanline_fused.training.config import HumanlineConfig
from humanline_fused.training.data import PreparedData


def describe(config: HumanlineConfig, choice: Choice, train: PreparedData, held_out: PreparedData | None) -> str:
    """Two lines: how the run computes its loss, and what became of its data."""
    reference = config.reference if config.reference == "frozen" else f"{config.reference} k={config.sync_every}"
    clamp = f"[{config.log_epsilon_P:g}, {config.log_epsilon_R:g}] nats" if config.clamp else "off"
    data = f"data: {_counts(train)}" + (f"; held out: {_counts(held_out)}" if held_out else "")
    return f"{config.objective}: reference {reference}, clamp {clamp}, computed by {choice.impl} ({choice.why})\n{data}"


def _counts(data: PreparedData) -> str:
    notes = [
        ("dropped (prompt >= max_length)", data.dropped),
        ("completions cut at max_length (end of sequence lost)", data.truncated),
        ("groups without signal (equal rewards)", data.groups_without_signal),
    ]
    return ", ".join([f"{len(data.examples)} examples", *(f"{what}: {count}" for what, count in notes if count)])
