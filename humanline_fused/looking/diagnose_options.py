"""Options of ``humanline diagnose``, apart from its code so that ``--help`` stays fast."""

import argparse
from pathlib import Path

from humanline_fused.printing import Parser


def diagnose_parser(description: str | None) -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = Parser(prog="humanline diagnose", description=description, allow_abbrev=False)
    parser.add_argument("--model", help="Folder or name of the model.")
    parser.add_argument("--dataset", help="The data, as of train.")
    parser.add_argument(
        "--run", type=Path, help="Instead of both: a run's folder. Compares its newest checkpoint with its start."
    )
    parser.add_argument("--source", metavar="MODEL", help="The model that wrote the data, with the same tokenizer.")
    parser.add_argument("--reference", metavar="MODEL", help="Instead: a model that MODEL is compared with.")
    parser.add_argument("--objective", help="Its name, or module:Class. Default: the first that accepts the data.")
    parser.add_argument("--objective_kwargs", metavar="JSON", help="Arguments of your own objective.")
    parser.add_argument(
        "--split", dest="dataset_split", default="train", help="The split, if there are several. Default: %(default)s"
    )
    parser.add_argument("--columns", metavar="NAMES", help="Columns that have other names, as of train.")
    parser.add_argument("--max_length", type=int, default=1024, help="As of train. Default: %(default)s")
    parser.add_argument(
        "--train_on", choices=("assistant", "completion"), default="assistant", help="As of train. Default: %(default)s"
    )
    for name, bound in (("log_epsilon_P", -1.5), ("log_epsilon_R", 1.5)):
        parser.add_argument(f"--{name}", type=float, default=bound, help="The clamp's bound. Default: %(default)s")
    parser.add_argument("--limit", type=int, default=1024, help="Examples, evenly chosen. Default: %(default)s")
    parser.add_argument("--batch_size", type=int, default=8, help="Examples of a forward pass. Default: %(default)s")
    parser.add_argument(
        "--output_dir",
        type=Path,
        default=Path("runs/diagnose"),
        help="Folder of diagnose.png, which takes the place of an earlier one. Default: %(default)s",
    )
    return parser
