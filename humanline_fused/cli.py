"""The command ``humanline``. Each subcommand imports its own modules, so that ``--help`` stays fast."""

import argparse
import dataclasses
import importlib
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from humanline_fused import __version__
from humanline_fused.extras import need, remedy
from humanline_fused.interruption import interruptible
from humanline_fused.printing import Parser, escaped, one_line, plain_warnings, unfailing_output


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the arguments after the program's name; default those of the process.

    Returns:
        The exit status: 0 for success, 2 for an unusable setting or file, 1 for a run that failed, 130 after Ctrl-C.
        Errors are one line on stderr.

    >>> main(["info"])  # doctest: +SKIP
    0
    """
    try:
        with unfailing_output(), plain_warnings(), interruptible():
            return _run(argv)
    except KeyboardInterrupt:  # before the command began
        print("humanline: interrupted", file=sys.stderr)
        return 130


def _run(argv: Sequence[str] | None) -> int:
    commands = {
        "init": init,
        "train": train,
        "data": data,
        "diagnose": diagnose,
        "plot": plot,
        "show": show,
        "chat": chat,
        "merge": merge,
        "fit": fit,
        "demo": demo,
        "info": info,
    }
    parser = Parser(
        prog="humanline",
        description="Humanline DPO, KTO and GRPO.",
        epilog="commands:\n"
        + "\n".join(
            f"  {name:<{max(map(len, commands)) + 2}}{(command.__doc__ or '').splitlines()[0]}"
            for name, command in commands.items()
        )
        + "\n\n`humanline COMMAND --help` lists a command's options.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"humanline-fused {__version__}")
    parser.add_argument("command", choices=commands, metavar="COMMAND", help=", ".join(commands))
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    name = f"{parser.prog} {arguments.command}"
    try:
        with interruptible():
            commands[arguments.command](arguments.arguments)
    except UserError as error:
        print(f"{name}: error: {escaped(one_line(error))}", file=sys.stderr)
        return error.status
    except ModuleNotFoundError as error:
        if not (text := remedy(error)):
            raise
        print(f"{name}: error: {text}", file=sys.stderr)
        return UserError.status
    except KeyboardInterrupt as interrupt:
        print(f"{name}: {escaped(str(interrupt) or 'interrupted')}", file=sys.stderr)
        return 130
    return 0


class UserError(Exception):
    """A setting or a file that cannot be used. The text is shown to the user."""

    status = 2


class RunError(UserError):
    """A run that failed after it began."""

    status = 1


def user_error(error: Exception) -> UserError:
    """Return the error of a setting, a file or the data before the first step, as the user sees it.

    ValueErrors and TypeErrors of this package and of transformers are about them. Another library's may be a fault of
    the program, so it is named.
    """
    module, line = _place(error)
    if isinstance(error, OSError) or module.split(".")[0] in (__name__.split(".")[0], "transformers"):
        return UserError(str(error))
    return UserError(f"{error} ({type(error).__name__} in {module}, line {line})")


def _place(error: Exception) -> tuple[str, int]:
    """Return the module and the line that raised an error."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return (str(frames[-1].f_globals["__name__"]), frames[-1].f_lineno) if frames else (__name__, 0)


def raise_without_library(error: ImportError | RuntimeError) -> NoReturn:
    """Raise the error as a user's if transformers says that a library is missing which a setting needs, else as it is.

    Its integrations of loggers raise RuntimeError for it.
    """
    within = "transformers.integrations." if isinstance(error, RuntimeError) else "transformers."
    if not _place(error)[0].startswith(within):
        raise error
    raise UserError(str(error)) from error


def init(argv: Sequence[str]) -> None:
    """Write a first run: a small start model, preference pairs and a YAML file, without a network."""
    parser = Parser(prog="humanline init", description=init.__doc__, allow_abbrev=False)
    parser.add_argument(
        "folder", nargs="?", type=Path, default=Path("first"), metavar="DIR", help="Default: %(default)s"
    )
    parser.add_argument("--seed", type=int, default=0, help="Default: %(default)s")
    options = parser.parse_args(argv)

    need("train")
    from humanline_fused.demo.first_run import write_first_run

    try:
        print("\n".join(write_first_run(options.folder, seed=options.seed)))
    except (ValueError, OSError) as error:
        raise user_error(error) from error


def train(argv: Sequence[str]) -> None:
    """Train a model with the settings of a YAML file; `--field value` overrides a setting."""
    from transformers import HfArgumentParser

    from humanline_fused.training import HumanlineConfig, HumanlineTrainer
    from humanline_fused.training.config_file import config_arguments, without_null
    from humanline_fused.training.foreign_arguments import OF_SETTINGS, instead
    from humanline_fused.training.help_text import HelpAction
    from humanline_fused.training.online.reward import RolloutError
    from humanline_fused.training.run.checkpoint import refuse_early
    from humanline_fused.training.run.whole_run import saying_how_to_continue, train_and_export

    file_option = Parser(add_help=False, allow_abbrev=False)
    file_option.add_argument(
        "--config", type=Path, help="A YAML file with any of the fields below; `--field null` ignores its value."
    )
    chosen, overrides = file_option.parse_known_args(argv)
    fields = [field.name for field in dataclasses.fields(HumanlineConfig) if field.init]
    overrides, unset = without_null(overrides, fields)
    try:
        settings = config_arguments(chosen.config, fields, unset) if chosen.config else []
    except ValueError as error:
        raise UserError(str(error)) from error

    parser = HfArgumentParser(
        HumanlineConfig,  # pyright: ignore[reportArgumentType]
        prog="humanline train",
        usage="humanline train [--config file.yaml] [--field value ...]",
        parents=[file_option],
        allow_abbrev=False,
        add_help=False,
    )
    parser.add_argument("-h", "--help", action=HelpAction, help="Print the usual options and exit.")
    parser.add_argument("--help-all", action=HelpAction, help="Print all options, transformers' too, and exit.")
    try:
        config, _, unknown = parser.parse_args_into_dataclasses(
            [*settings, *overrides], look_for_args_file=False, return_remaining_strings=True
        )
        if unknown:
            theirs, ours = {f"--{name}": here for name, here in OF_SETTINGS.items()}, [f"--{name}" for name in fields]
            raise UserError(f"{unknown[0]}: not an option{instead(unknown[0], theirs, ours)}")
        refuse_early(config.output_dir, config.resume_from_checkpoint, overwrite=config.overwrite_output_dir)
        with saying_how_to_continue(config):
            trainer = HumanlineTrainer(args=config)
    except UnicodeEncodeError:  # no setting causes it
        raise
    except (ValueError, TypeError, OSError) as error:
        raise user_error(error) from error
    except (ImportError, RuntimeError) as error:
        raise_without_library(error)

    try:
        with saying_how_to_continue(config):
            said = train_and_export(trainer)
    except (FloatingPointError, OSError, RolloutError) as error:
        raise RunError(str(error)) from error
    except ImportError as error:  # an optimizer's, which transformers imports before the first step
        raise_without_library(error)
    except RuntimeError as error:
        if trainer.begun or not _place(error)[0].startswith("humanline_fused."):
            raise
        raise UserError(str(error)) from error  # of an impl that cannot run here
    except (ValueError, TypeError) as error:
        if trainer.begun or isinstance(error, UnicodeEncodeError):
            raise
        raise user_error(error) from error
    if said and config.process_index == 0:
        print(said)
        if not trainer.termination.stopped:
            _print_ending(trainer)


def _print_ending(trainer: Any) -> None:
    """Print what a finished run has learnt. The run has succeeded, whatever this says."""
    from humanline_fused.looking.result import ending

    config = trainer.args
    try:
        lines = ending(trainer.run_dir, held_out=len(trainer.eval_examples), sync_every=config.sync_every)
    except (ValueError, OSError) as error:
        lines = [f"no result: {one_line(error)}"]
    print(escaped("\n".join(lines)))


def plot(argv: Sequence[str]) -> None:
    """Plot several runs together: reward, margin, unclamped share and KL, over steps and over seconds."""
    parser = Parser(prog="humanline plot", description=plot.__doc__, allow_abbrev=False)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="A run's folder (its output_dir).")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="The file extension gives the format. Default: RUN/plot.png for one run, plot.png for several",
    )
    options = parser.parse_args(argv)

    from humanline_fused.looking.plot import plot_runs

    try:
        print("\n".join(plot_runs(options.runs, options.output)))
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from error


def show(argv: Sequence[str]) -> None:
    """Write an HTML page of the tokens of one step or example, coloured by their log-ratios."""
    parser = Parser(prog="humanline show", description=show.__doc__, allow_abbrev=False)
    parser.add_argument("run", type=Path, metavar="RUN", help="The run's folder (its output_dir).")
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--step",
        type=int,
        metavar="N",
        help="The examples of optimizer step N; needs checkpoint-N. Default: the newest complete one (with samples)",
    )
    which.add_argument("--example", type=int, metavar="I", help="Example I of the training data, from 0.")
    parser.add_argument("--checkpoint", type=int, metavar="N", help="With --example. Default: the newest complete one.")
    parser.add_argument("--model", help="The initial policy, if the run's settings name none.")
    parser.add_argument("--dataset", help="The training data, if the run's settings name none.")
    parser.add_argument("--output", type=Path, metavar="FILE", help="Default: RUN/show-step-N.html")
    options = parser.parse_args(argv)
    if options.checkpoint is not None and options.step is not None:
        raise UserError("--checkpoint: expected none with --step N, which takes checkpoint-N")
    if options.checkpoint is not None and options.example is None:
        raise UserError(f"--checkpoint: expected --example I beside it, or --step {options.checkpoint} in its place")

    from humanline_fused.looking.show import show_run

    try:
        print(show_run(**vars(options)))
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from error


def _of_module(module: str, description: str) -> Callable[[Sequence[str]], None]:
    """Return the command that a module has as a function of its own name."""

    def command(argv: Sequence[str]) -> None:
        run = getattr(importlib.import_module(module), module.split(".")[-1])
        try:
            run(argv, description)
        except (ValueError, OSError) as error:
            raise user_error(error) from error

    command.__doc__ = description
    return command


chat = _of_module("humanline_fused.trained.chat", "Talk with the model of a run, of a checkpoint, or of a folder.")
merge = _of_module("humanline_fused.trained.merge", "Merge a run's LoRA adapter into its base model: a whole model.")
info = _of_module(
    "humanline_fused.info",
    "Print versions, the device, and the implementation that each operation would use, with the reason.",
)
fit = _of_module("humanline_fused.memory.fit", "Compute a step's memory from a model's config: which GPUs hold it.")


def data(argv: Sequence[str]) -> None:
    """Check a dataset before training: data type, matching objectives, lengths and bad rows."""
    from humanline_fused.looking.data_options import data_options

    try:
        options = data_options(argv, data.__doc__)
    except ValueError as error:
        raise UserError(str(error)) from error

    need("train")
    from humanline_fused.looking.model_limits import read_limits
    from humanline_fused.training.data.rows.columns import read_columns
    from humanline_fused.training.inspection import inspect_data, report
    from humanline_fused.training.objectives import find_objective
    from humanline_fused.training.objectives.settings import json_mapping
    from humanline_fused.training.run_data import refuse_losses

    try:
        model = options.model and read_limits(options.model, trust_remote_code=options.trust_remote_code)
    except (ValueError, OSError) as error:
        raise UserError(f"--model: {error}") from error
    tokenizer = model.tokenizer if model else None
    try:
        kwargs = options.objective_kwargs and json_mapping("--objective_kwargs", options.objective_kwargs)
        if kwargs and not options.objective:
            raise ValueError(f"--objective_kwargs: expected --objective module:Class beside it, got {kwargs} alone")
        objective = find_objective(options.objective, kwargs) if options.objective else None
        settings = {"objective": objective, "split": options.split, "max_length": options.max_length}
        columns = read_columns(options.columns, "--columns")
        settings |= {"train_on": options.train_on, "stops": model.stops if model else ()}
        found = inspect_data(options.file, tokenizer=tokenizer, columns=columns, progress=bool(tokenizer), **settings)
    except (ValueError, TypeError, OSError) as error:
        raise user_error(error) from error
    print(escaped(report(found)))
    if found.num_wrong:
        rows = f"{found.num_wrong} of {found.num_rows} rows cannot be used"
        raise UserError(f"{rows}: training would stop at the first")
    if tokenizer and not found.num_examples:
        raise UserError("no training example would be left")
    try:
        warning = found.check_positions(model.positions if model else None)
    except ValueError as error:
        raise UserError(str(error)) from error
    if warning:
        print(f"\n{warning}")
    if options.strict:
        try:
            refuse_losses(found.findings, setting="--strict")
        except ValueError as error:
            raise UserError(str(error)) from error


def diagnose(argv: Sequence[str]) -> None:
    """Say before training whether data suit a model: log-probs, surplus surprisal, and ratios to their source."""
    from humanline_fused.looking.diagnose_options import diagnose_parser

    options = vars(diagnose_parser(diagnose.__doc__).parse_args(argv))
    if options["max_length"] < 1:
        raise UserError(f"--max_length: expected an integer >= 1, got {options['max_length']}")

    need("plot")
    from humanline_fused.looking.diagnose import diagnose as lines
    from humanline_fused.training.objectives.settings import json_mapping

    try:
        if options["objective_kwargs"]:
            options["objective_kwargs"] = json_mapping("--objective_kwargs", options["objective_kwargs"])
        for line in lines(**options):
            print(escaped(line))
    except (ValueError, TypeError, OSError) as error:
        raise user_error(error) from error


def demo(argv: Sequence[str]) -> None:
    """Compare plain and humanline DPO on a CPU: many tiny policies and a small Llama (under two minutes)."""
    parser = Parser(prog="humanline demo", description=demo.__doc__, allow_abbrev=False)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/demo"), help="Default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="Default: %(default)s")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="A further file for the picture.")
    options = parser.parse_args(argv)

    need("plot")
    from humanline_fused.demo.comparison import Demo, run_demo

    try:
        run_demo(Demo(**vars(options)))
    except ValueError as error:
        raise user_error(error) from error
    except (OSError, RuntimeError) as error:
        raise RunError(str(error)) from error
