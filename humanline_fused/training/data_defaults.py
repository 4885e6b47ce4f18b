"""What `humanline data` takes from the YAML file of a run."""

import dataclasses
import os
from pathlib import Path
from typing import Any

from transformers import HfArgumentParser

from humanline_fused.training.config import HumanlineConfig
from humanline_fused.training.config_file import config_arguments

OPTIONS = {
    "file": "dataset",
    "split": "dataset_split",
    "columns": "columns",
    "objective": "objective",
    "objective_kwargs": "objective_kwargs",
    "model": "model",
    "trust_remote_code": "trust_remote_code",
    "max_length": "max_length",
    "train_on": "train_on",
    "strict": "strict_data",
}
"""By option of `humanline data` the setting of a run that it is."""


def data_defaults(file: Path) -> dict[str, Any]:
    """Return the values of a run's file, or a run's defaults, by option of `humanline data`.

    The file is read as `humanline train` reads it, and no setting of another kind is looked at. In rounds there are
    prompts, which no objective is for.

    Raises:
        ValueError: the file cannot be read, or has a key that is no setting.
    """
    fields = [field.name for field in dataclasses.fields(HumanlineConfig) if field.init]
    kind: Any = HumanlineConfig
    parser = HfArgumentParser(kind, prog="humanline data", usage="humanline data --config FILE", add_help=False)
    settings = vars(parser.parse_args(config_arguments(file, fields)))
    found = {option: settings[name] for option, name in OPTIONS.items()}
    for place in ("file", "model"):
        found[place] = found[place] and os.path.expanduser(found[place])
    return found | ({"objective": None, "objective_kwargs": None} if settings["rollout_every"] else {})
