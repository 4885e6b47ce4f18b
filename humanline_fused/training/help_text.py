"""The options of `humanline train` in groups: ours first, those of transformers on request."""

import argparse
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from transformers import TrainingArguments

from humanline_fused.training.config import OWN, HumanlineConfig
from humanline_fused.training.data_settings import DataSettings
from humanline_fused.training.folder_settings import FolderSettings
from humanline_fused.training.model_settings import ModelSettings
from humanline_fused.training.objectives.table import ObjectiveSettings

USUAL = (
    "output_dir",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "num_train_epochs",
    "max_steps",
    "max_grad_norm",
    "gradient_checkpointing",
    "eval_strategy",
    "eval_steps",
    "save_strategy",
    "save_steps",
    "seed",
    "disable_tqdm",
    "use_cpu",
)
"""Options of transformers that most runs set."""


THEIRS = "other options of transformers' TrainingArguments"


def _names(kind: type) -> list[str]:
    return [field.name for field in fields(kind)]


def groups() -> dict[str, list[str]]:
    """Return the names of all settings by the titles of their groups; each setting is in one group."""
    named = {
        "model": _names(ModelSettings),
        "data": _names(DataSettings),
        "loss": ["objective", "objective_kwargs", *_names(ObjectiveSettings)],
        "run": [*_names(FolderSettings), *USUAL],
    }
    given = {name for names in named.values() for name in names}
    theirs = set(_names(TrainingArguments))
    own = [name for name in _names(HumanlineConfig) if name in OWN and name not in given]
    named["reference, rounds, computing"] = [name for name in own if name not in theirs]
    named["optimizer and log, with other defaults than transformers'"] = [name for name in own if name in theirs]
    shown = {name for names in named.values() for name in names}
    named[THEIRS] = [name for name in _names(HumanlineConfig) if name not in shown]
    return named


class HelpAction(argparse.Action):
    """Prints :func:`grouped_help` and ends the program; as ``--help-all`` with every option."""

    def __init__(self, option_strings: Sequence[str], dest: str, **kwargs: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, default=argparse.SUPPRESS, **kwargs)

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option: str | None = None) -> None:
        print(grouped_help(parser, everything=option == "--help-all"), end="")
        parser.exit()


def grouped_help(parser: argparse.ArgumentParser, *, everything: bool) -> str:
    """Return the help of a parser of all settings, in groups.

    Args:
        parser: has an option for each setting.
        everything: with the other options of transformers.
    """
    formatter = parser._get_formatter()
    formatter.add_usage(parser.usage, parser._actions, parser._mutually_exclusive_groups)
    for title, names in {"options": ["help", "help_all", "config"], **groups()}.items():
        if title == THEIRS and not everything:
            continue
        formatter.start_section(title)
        for name in names:  # --no_NAME is another action of the same name
            formatter.add_arguments([action for action in parser._actions if action.dest == name])
        formatter.end_section()
    return formatter.format_help()
