"""Columns for the chat template: tools, and the values of its variables."""

import inspect
from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from humanline_fused.training.data.reading.exact_json import parse
from humanline_fused.training.data.reading.plain import plain
from humanline_fused.training.data.rows.columns import TEMPLATE_COLUMNS
from humanline_fused.training.data.rows.messages import Record, Text, as_list

RESERVED = {
    *(
        name
        for function in (PreTrainedTokenizerBase.apply_chat_template, render_jinja_template)
        for name in inspect.signature(function).parameters
        if name not in ("documents", "kwargs")
    ),
    *("messages", "additional_special_tokens", "extra_special_tokens"),
    *PreTrainedTokenizerBase.SPECIAL_TOKENS_ATTRIBUTES,
}
"""Names that ``chat_template_kwargs`` cannot give: they change more than the template's variables."""


def template_arguments(record: Record, prompt: Text) -> dict[str, Any]:
    """Return the arguments of the chat template besides the messages. Values that are None are left out.

    Raises:
        ValueError: the prompt is text; a column is not JSON, or of the wrong type; or a name is not the template's.

    >>> template_arguments({"chat_template_kwargs": {"mood": "calm"}}, [{"role": "user", "content": "Sky?"}])
    {'mood': 'calm'}
    """
    given = {name: record.get(name) for name in TEMPLATE_COLUMNS}
    for name, value in given.items():
        if value and isinstance(prompt, str):
            raise ValueError(f"{name}: expected a prompt of messages, which a chat template renders, got text")
        if isinstance(value, str):
            try:
                given[name] = plain({name: parse(value)})[name]
            except ValueError as error:
                raise ValueError(f"{name}: expected JSON, got {value[:80]!r}: {error}") from None
    tools, settings = (as_list(given[name]) for name in TEMPLATE_COLUMNS)
    if tools is not None and not isinstance(tools, list):
        raise ValueError(f"tools: expected a list of JSON schemas, got {tools!r:.80}")
    if settings is not None and not isinstance(settings, Mapping):
        raise ValueError(f"chat_template_kwargs: expected an object, got {settings!r:.80}")
    settings = {name: value for name, value in (settings or {}).items() if value is not None}
    for name in settings:
        if name in RESERVED:
            raise ValueError(
                f"chat_template_kwargs: expected variables of the chat template, got {name!r}, which belongs to "
                "apply_chat_template or the tokenizer"
            )
    return ({} if tools is None else {"tools": tools}) | settings
