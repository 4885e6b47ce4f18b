"""Training and held-out data of a run."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from humanline_fused.training.config import HumanlineConfig
from humanline_fused.training.data.advantages import batch_scale
from humanline_fused.training.data.examples import Example
from humanline_fused.training.data.prepare import PreparedData, prepare
from humanline_fused.training.data.prompts import PreparedPrompts, prepare_prompts
from humanline_fused.training.objectives.objective import Objective
from humanline_fused.training.objectives.table import ROUND


@dataclass(frozen=True)
class RunData:
    """Tokenised training and held-out data.

    Attributes:
        train: the training data, or the prompts of online rounds.
        held_out: the held-out data; None if there are none.
        held_out_examples: the examples of ``held_out`` with the weights for evaluation.
    """

    train: PreparedData | PreparedPrompts
    held_out: PreparedData | None
    held_out_examples: Sequence[Example]


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
) -> RunData:
    """Read and tokenise the data of a run.

    Args:
        train_dataset, eval_dataset: default those named by the config.
        prompts_alone: read only prompts, because the run samples its completions itself.

    Raises:
        ValueError, TypeError: there are no training data, or a record is invalid.
    """
    train_dataset = config.dataset if train_dataset is None else train_dataset
    eval_dataset = config.eval_dataset if eval_dataset is None else eval_dataset
    if train_dataset is None:
        raise ValueError("train_dataset: expected a path, a name, a Dataset or a list of records, got None")
    shared = {"max_length": config.max_length, "progress": not config.disable_tqdm and config.process_index == 0}
    rewards = {"scale_rewards": config.scale_rewards, "drop_no_signal": objective.drops_ties(config)}
    if prompts_alone:
        train = prepare_prompts(train_dataset, tokenizer, ROUND, split=config.dataset_split, **shared)
    else:
        train = prepare(train_dataset, tokenizer, objective, split=config.dataset_split, **rewards, **shared)
    if eval_dataset is None:
        return RunData(train, None, [])
    held_out = prepare(eval_dataset, tokenizer, objective, split=config.eval_dataset_split, **rewards, **shared)
    if not scales_by_batch(config, objective):
        return RunData(train, held_out, held_out.examples)
    # All held-out data are one batch, so that evaluation does not depend on the number of ranks and micro-batches.
    scale = batch_scale([example.reward for example in held_out.examples])
    return RunData(train, held_out, [replace(e, weight=e.weight / scale) for e in held_out.examples])
