"""Options of ``humanline data``, apart from its code so that ``--help`` stays fast."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from humanline_fused.extras import need
from humanline_fused.printing import Parser


def data_options(argv: Sequence[str], description: str | None) -> argparse.Namespace:
    """Return the options of the command, those of a run's file where the command line has none.

    Args:
        argv: its arguments.
        description: of the command, for ``--help``.

    Raises:
        ValueError: an option or the file cannot be used.
    """
    parser = Parser(prog="humanline data", description=description, allow_abbrev=False)
    parser.add_argument(
        "file",
        nargs="?",
        metavar="FILE",
        help="A JSONL, JSON, CSV, TSV or Parquet file, a folder saved by datasets, or a dataset name.",
    )
    parser.add_argument(
        "--config",
        type=Path,
        metavar="YAML",
        help="A file of train: its dataset and settings, where no option is given.",
    )
    parser.add_argument("--objective", help="Its name, or module:Class. Default: the first that accepts the data.")
    parser.add_argument("--objective_kwargs", metavar="JSON", help="Arguments of your own objective.")
    parser.add_argument(
        "--model", "--tokenizer", help="Folder or name of the tokenizer, for lengths in tokens and counts of cut rows."
    )
    parser.add_argument("--trust_remote_code", action="store_true", help="Run code that is beside the model.")
    parser.add_argument(
        "--max_length", type=int, default=1024, help="Maximum tokens of a sequence. Default: %(default)s"
    )
    parser.add_argument("--split", default="train", help="The split, if there are several. Default: %(default)s")
    parser.add_argument(
        "--columns", metavar="NAMES", help="Columns that have other names, as prompt=question or JSON (docs/data.md)."
    )
    parser.add_argument(
        "--train_on", choices=("assistant", "completion"), default="assistant", help="As of train. Default: %(default)s"
    )
    parser.add_argument(
        "--strict", action="store_true", help="Exit with 2 if a part of the data would not be learnt as it is written."
    )
    options = parser.parse_args(argv)
    if options.config:
        need("train")
        from humanline_fused.training.data_defaults import data_defaults

        parser.set_defaults(**data_defaults(options.config))
        options = parser.parse_args(argv)
    if not options.file:
        parser.error("expected FILE, or --config with a dataset, got neither")
    if options.max_length < 1:
        raise ValueError(f"--max_length: expected an integer >= 1, got {options.max_length}")
    return options
