"""Warnings of transformers that are not true of a humanline run."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

UNTRUE = {
    # A dry run, or a finished run that is resumed, takes no batch.
    "transformers.trainer": "There seems not to be a single sample in your epoch_iterator",
    # Padding follows the tokens, so causal attention never reads it (scoring.py).
    "transformers.modeling_utils": "We strongly recommend passing in an `attention_mask`",
}
"""The beginning of each message, by its logger."""


@contextmanager
def without_untrue_warnings() -> Iterator[None]:
    """Drop the messages of :data:`UNTRUE`, and no others, until exit."""

    def kept(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(UNTRUE[record.name])

    loggers = [logging.getLogger(name) for name in UNTRUE]
    for logger in loggers:
        logger.addFilter(kept)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(kept)
