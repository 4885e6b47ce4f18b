"""Number of positions that a model can take, and the check of a run's longest sequence against it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM, PretrainedConfig

from humanline_fused.model.fused_head import causal_lm


@dataclass(frozen=True)
class PositionLimit:
    """The longest sequence that a model was made for.

    Attributes:
        positions: its number of tokens.
        is_table: True if the model looks its positions up in a table, so that later ones do not exist; False if it
            computes them (rotary embeddings), so that later ones exist but were not trained on.
    """

    positions: int
    is_table: bool


def position_limit_of(model: nn.Module) -> PositionLimit | None:
    """Return the limit of a transformers model, or of the one inside a PEFT model; None if it has none.

    A table of positions is an embedding other than that of the tokens with a row for every position of the config, and
    in some architectures rows before them (``offset``, or up to the padding row); or, in transformers' own models, a
    constant with such rows (GPT-J).
    """
    inside: Any = causal_lm(model)
    config: Any = inside.config.get_text_config()
    known = getattr(config, "max_position_embeddings", None)
    if not isinstance(known, int) or known < 1:
        return None
    tokens = inside.get_input_embeddings()
    decoder = inside.get_decoder()  # without an image tower, which has a table of its patches
    others = set(decoder.modules()) - set(tokens.modules())
    for module in others:
        if isinstance(module, nn.Embedding):
            padding = module.padding_idx
            before = getattr(module, "offset", 0 if padding is None else padding + 1)
            wide = max(getattr(config, "hidden_size", 0), tokens.weight.shape[-1])
            if known in (module.num_embeddings, module.num_embeddings - before) and module.embedding_dim <= wide:
                return PositionLimit(module.num_embeddings - before, is_table=True)
    own = type(inside).__module__.startswith("transformers.models.")
    constants = (buffer for buffer in decoder.buffers() if buffer.ndim == 2 and buffer.is_floating_point())
    if own and any(len(constant) == known for constant in constants):
        return PositionLimit(known, is_table=True)
    return PositionLimit(_scaled(known, config), is_table=False)


def position_limit(config: PretrainedConfig) -> PositionLimit | None:
    """Return the limit of the causal language model of a config, made without memory for its weights.

    None if the model has no limit, or is not one of transformers' own.

    >>> from transformers import GPT2Config, LlamaConfig
    >>> position_limit(GPT2Config(n_positions=64, n_layer=1)), position_limit(LlamaConfig(num_hidden_layers=1))
    (PositionLimit(positions=64, is_table=True), PositionLimit(positions=2048, is_table=False))
    """
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return None
    with torch.device("meta"):
        return position_limit_of(AutoModelForCausalLM.from_config(config))


def _scaled(positions: int, config: Any) -> int:
    """Return the positions of a rotary embedding that is scaled beyond those of its first training."""
    given = getattr(config, "rope_parameters", None) or {}
    several = [part for part in given.values() if isinstance(part, Mapping)]  # by type of layer
    for scaling in several or [given]:
        original, factor = scaling.get("original_max_position_embeddings"), scaling.get("factor")
        if original and factor:
            positions = max(positions, int(original * factor))
    return positions


@dataclass(frozen=True, order=True)
class Longest:
    """The longest sequence of a run; sequences are ordered by their length.

    Attributes:
        tokens: its length, cut at ``max_length``.
        name: the sequence, for a message.
    """

    tokens: int
    name: str


def longest_sequence(
    kind: str, lengths: Iterable[tuple[int, int]], max_length: int, *, mismatched: bool = False, followed: str = ""
) -> Longest:
    """Return the longest of a dataset's sequences.

    Args:
        kind: name of the data, for the message.
        lengths: of each example the tokens of its prompt and of its longest completion.
        max_length: every sequence is cut at this many tokens.
        mismatched: every prompt may also be followed by the completion of another example.
        followed: what follows the examples, for the message, if they are prompts.

    >>> longest_sequence("training", [(2, 3), (4, 2)], max_length=32)
    Longest(tokens=6, name='training example 1')
    >>> longest_sequence("training", [(2, 3), (4, 2)], max_length=32, mismatched=True)
    Longest(tokens=7, name="training example 1's prompt with training example 0's completion")
    """
    whole, prompt, completion = (0, 0), (0, 0), (0, 0)
    for place, (before, after) in enumerate(lengths):
        whole = max(whole, (before + after, -place))
        prompt, completion = max(prompt, (before, -place)), max(completion, (after, -place))
    crossed = prompt[0] + completion[0]
    if mismatched and min(crossed, max_length) > whole[0]:
        name = f"{kind} example {-prompt[1]}'s prompt with {kind} example {-completion[1]}'s completion"
        return Longest(min(crossed, max_length), name)
    return Longest(min(whole[0], max_length), f"{kind} example {-whole[1]}{followed}")


def check_positions(limit: PositionLimit | None, longest: Longest, max_length: int) -> str | None:
    """Return a warning if the longest sequence has computed positions beyond the limit, else None.

    Raises:
        ValueError: it has positions beyond the model's table.
    """
    if limit is None or longest.tokens <= limit.positions:
        return None
    if limit.is_table:
        raise ValueError(
            f"max_length={max_length}: expected sequences of at most {limit.positions} tokens, the model's table of "
            f"positions, got {longest.tokens} ({longest.name}): set max_length={limit.positions}, which cuts them, or "
            "use a model with more positions"
        )
    return (
        f"positions: {longest.name} has {longest.tokens} tokens, more than the model's {limit.positions} positions "
        f"(max_position_embeddings): set max_length={limit.positions}, unless the model is made for longer texts"
    )
