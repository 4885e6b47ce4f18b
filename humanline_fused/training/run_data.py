"""Training and held-out data of a run."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from humanline_fused.printing import counted
from humanline_fused.training.config import HumanlineConfig
from humanline_fused.training.data.advantages import batch_scale
from humanline_fused.training.data.examples import Example
from humanline_fused.training.data.findings import Findings, Severity
from humanline_fused.training.data.held_out import split
from humanline_fused.training.data.prepare import PreparedData, prepare
from humanline_fused.training.data.prompts import PreparedPrompts, prepare_prompts, with_texts
from humanline_fused.training.data.reading.sources import first_row
from humanline_fused.training.data.rows.columns import apply_columns, read_columns
from humanline_fused.training.data.rows.records import Taker, read_row
from humanline_fused.training.data.store import StoredExamples
from humanline_fused.training.data_settings import HELD_OUT, LEAST_HELD_OUT
from humanline_fused.training.kept_tokens import kept, key_of
from humanline_fused.training.objectives.objective import Objective
from humanline_fused.training.objectives.settings import expect
from humanline_fused.training.objectives.table import ANSWER, ROUND


@dataclass(frozen=True)
class RunData:
    """Tokenised training and held-out data.

    Attributes:
        train: the training data, or the prompts of online rounds.
        held_out: the held-out data; None if there are none.
        held_out_examples: the examples of ``held_out`` with the weights for evaluation.
        held_out_prompts: the prompts of ``eval_dataset``, which an evaluation answers; None if it does not.
        fraction: share of the training data that was held out; None if none was.
    """

    train: PreparedData | PreparedPrompts
    held_out: PreparedData | None
    held_out_examples: Sequence[Example]
    held_out_prompts: PreparedPrompts | None = None
    fraction: float | None = None


def scales_by_batch(config: HumanlineConfig, objective: Objective) -> bool:
    """Return True if advantages are divided by the standard deviation of all rewards of the optimizer step."""
    return objective.form.has_rewards and config.scale_rewards == "batch"


def read_run_data(
    train_dataset: Any,
    eval_dataset: Any,
    tokenizer: PreTrainedTokenizerBase,
    config: HumanlineConfig,
    objective: Objective,
    *,
    prompts_alone: bool,
    answered: bool = False,
    stops: Collection[int] = (),
) -> RunData:
    """Read and tokenise the data of a run.

    Args:
        train_dataset, eval_dataset: default those named by the config.
        prompts_alone: read only prompts, because the run samples its completions itself.
        answered: also read the prompts of ``eval_dataset``.
        stops: ids of the model's own stop tokens.

    Raises:
        ValueError, TypeError: there are no training data, a record is invalid, ``strict_data`` refuses a finding, or
            ``eval_fraction`` leaves nothing to train on or to hold out.
    """
    train_dataset = config.dataset if train_dataset is None else train_dataset
    eval_dataset = config.eval_dataset if eval_dataset is None else eval_dataset
    if train_dataset is None:
        raise ValueError("dataset (train_dataset=): expected a path, a name, a Dataset or a list of records, got None")
    reader = _Reader(tokenizer, config, objective, stops)
    split = config.dataset_split
    train = reader.prompts(train_dataset, split, ROUND) if prompts_alone else reader.examples(train_dataset, split)
    held_out = None if eval_dataset is None else reader.examples(eval_dataset, config.eval_dataset_split)
    if held_out is not None:
        expect(config, "eval_fraction", not config.eval_fraction, "None or 0 with an eval_dataset")
    if config.strict_data:
        refuse_losses(train.findings, *([held_out.findings] if held_out else []))
    fraction, prompts = None, None
    if answered and eval_dataset is not None:
        prompts = reader.prompts(eval_dataset, config.eval_dataset_split, ANSWER)
    if held_out is None and isinstance(train, PreparedData) and (parts := hold_out(train, config)) is not None:
        (train, held_out), fraction = parts, share_of(config)
    if held_out is None:
        return RunData(train, None, [])
    if not scales_by_batch(config, objective):
        return RunData(train, held_out, held_out.examples, prompts, fraction)
    # All held-out data are one batch, so that evaluation does not depend on the number of ranks and micro-batches.
    scale = batch_scale([example.reward for example in held_out.examples])
    weighted = [replace(e, weight=e.weight / scale) for e in held_out.examples]
    return RunData(train, held_out, weighted, prompts, fraction)


def check_sources(
    train_dataset: Any,
    eval_dataset: Any,
    config: HumanlineConfig,
    objective: Objective,
    *,
    prompts_alone: bool,
    answered: bool,
) -> None:
    """Read the first row of each dataset, before a model is loaded, where that costs little.

    Args:
        train_dataset, eval_dataset, prompts_alone, answered: as of :func:`read_run_data`.
        config, objective: the settings, and the columns that are needed.

    Raises:
        ValueError, TypeError: as :func:`read_run_data` does for a source, or for its first row.
    """
    columns = read_columns(config.columns)
    train = config.dataset if train_dataset is None else train_dataset
    held_out = config.eval_dataset if eval_dataset is None else eval_dataset
    taker = ROUND if prompts_alone else objective
    for source, takers, part in (
        (train, [taker], config.dataset_split),
        (held_out, [objective, ANSWER] if answered else [objective], config.eval_dataset_split),
    ):
        first = None if source is None else first_row(source, part)
        if first is None:
            continue
        where, record = first
        if isinstance(record, ValueError):
            raise record
        for taken_by in takers:
            read_row(where, apply_columns(where, record, columns), taken_by)


def share_of(config: HumanlineConfig) -> float:
    """Return the share of the data to hold out where no other data are held out."""
    return HELD_OUT if config.eval_fraction is None else config.eval_fraction


def hold_out(data: PreparedData, config: HumanlineConfig) -> tuple[PreparedData, PreparedData] | None:
    """Return the data to train on and those held out; None if none are.

    By default none are held out of few data: fewer than :data:`~humanline_fused.training.data_settings.LEAST_HELD_OUT`
    examples would be, or less than a global batch would be left.

    Raises:
        ValueError: ``eval_fraction`` was given and leaves nothing to train on or to hold out.
    """
    share, given = share_of(config), config.eval_fraction is not None
    if not share:
        return None
    train, held_out = split(data.examples, share)
    needed = config.train_batch_size * config.gradient_accumulation_steps * config.world_size
    if len(held_out) < (1 if given else LEAST_HELD_OUT) or len(train) < (1 if given else needed):
        if not given:
            return None
        examples = counted(len(data.examples), "example")
        prompts = counted(len(np.unique(data.examples.prompts)), "prompt")
        raise ValueError(
            f"eval_fraction: expected a share that holds out at least one whole prompt and leaves one to train on, got "
            f"{share:g} of {examples} of {prompts}. Give an eval_dataset, or eval_fraction=0"
        )
    return replace(data, examples=train), PreparedData(held_out)


def refuse_losses(*findings: Findings, setting: str = "strict_data") -> None:
    """Raise ValueError if a part of the data would not be learnt as it is written."""
    lines = [line for one in findings for line in one.lines(Severity.LOSS)]
    if lines:
        said = "; ".join(lines)
        raise ValueError(f"{setting}: expected data that are learnt as they are written, got {said}")


@dataclass(frozen=True)
class _Reader:
    """Reads datasets, whose tokens are kept beside the run."""

    tokenizer: PreTrainedTokenizerBase
    config: HumanlineConfig
    objective: Objective
    stops: Collection[int]

    def examples(self, source: Any, split: str) -> PreparedData:
        """Return the examples of a dataset."""
        config = self.config
        settings: dict[str, Any] = {
            "max_length": config.max_length,
            "columns": config.columns,
            "scale_rewards": config.scale_rewards,
            "drop_no_signal": self.objective.drops_ties(config),
            "train_on": config.train_on,
            "stops": sorted(self.stops),
        }

        def make(stored: StoredExamples | None, notes: Mapping[str, Any]) -> PreparedData:
            if stored is not None:
                return PreparedData(stored, Findings.from_json(notes["findings"]))
            return prepare(source, self.tokenizer, self.objective, split=split, **settings, **self._work)

        form = self.objective.form
        named = {"form": type(form).__name__, **({"rows": True} if form.grouped else {}), **settings}
        return kept(config, lambda: key_of(source, split, self.tokenizer, named), make)

    def prompts(self, source: Any, split: str, taker: Taker) -> PreparedPrompts:
        """Return the prompts of a dataset; their tokens are the same for every taker."""
        settings: dict[str, Any] = {"max_length": self.config.max_length, "columns": self.config.columns}

        def make(stored: StoredExamples | None, notes: Mapping[str, Any]) -> PreparedPrompts:
            if stored is not None:
                return with_texts(stored, notes, source, taker, split=split, columns=self.config.columns)
            return prepare_prompts(source, self.tokenizer, taker, split=split, **settings, **self._work)

        return kept(self.config, lambda: key_of(source, split, self.tokenizer, {"form": ROUND.name, **settings}), make)

    @property
    def _work(self) -> dict[str, Any]:
        progress = not self.config.disable_tqdm and self.config.process_index == 0
        return {"num_proc": self.config.dataset_num_proc, "progress": progress}
