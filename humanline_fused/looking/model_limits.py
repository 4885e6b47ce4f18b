"""What a check of a dataset reads of a model: its tokenizer, its number of positions and its stop tokens."""

from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase
from transformers.utils import CONFIG_NAME, GENERATION_CONFIG_NAME

from humanline_fused.training.online.generation import end_tokens
from humanline_fused.training.positions import PositionLimit, position_limit
from humanline_fused.training.start import loading


@dataclass(frozen=True)
class ModelLimits:
    """A tokenizer and the limits of its model.

    Attributes:
        tokenizer: the tokenizer.
        positions: the longest sequence; None if the model has no limit, or there is none beside the tokenizer.
        stops: ids of the tokens that end an answer.
    """

    tokenizer: PreTrainedTokenizerBase
    positions: PositionLimit | None
    stops: Collection[int]


def read_limits(model: str, *, trust_remote_code: bool = False) -> ModelLimits:
    """Read a tokenizer and the configs beside it, without weights.

    Args:
        model: folder or name; a folder may have a tokenizer alone.
        trust_remote_code: whether code beside the model may run.

    Raises:
        ValueError, OSError: there is no tokenizer, or a file is damaged.
    """
    with loading("tokenizer", model):
        tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=trust_remote_code)
    limit = generation = None
    if _may_have(model, CONFIG_NAME):
        with loading("config", model):
            config = AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code)
            limit, generation = position_limit(config), GenerationConfig.from_model_config(config)
    if _may_have(model, GENERATION_CONFIG_NAME):
        with suppress(OSError), loading("generation config", model):  # without one, a model has that of its config
            generation = GenerationConfig.from_pretrained(model)
    return ModelLimits(tokenizer, limit, end_tokens(generation, tokenizer))


def _may_have(model: str, file: str) -> bool:
    folder = Path(model)
    return not folder.is_dir() or (folder / file).is_file()
