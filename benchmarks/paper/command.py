"""``python -m benchmarks paper NAME|all``: the paper's claims, repeated with tiny policies and a small Llama.

Each experiment writes ``benchmarks/results/paper/NAME.csv`` and ``docs/images/paper/NAME.png``; ``python -m benchmarks
report`` then makes the text and the tables of docs/paper.md anew. ``--quick`` takes seconds and writes nothing there.
``paper gpu`` is a check on a model of real size, with options of its own.
"""

import argparse
import sys
import time
from pathlib import Path

import torch

from benchmarks.machine import environment
from benchmarks.paper.catalogue import EXPERIMENTS
from benchmarks.paper.document import FOLDER, IMAGES
from benchmarks.paper.experiment import Experiment
from benchmarks.results import read, write


def main(arguments: list[str]) -> None:
    if arguments[:1] == ["gpu"]:
        from benchmarks.paper import real_scale

        real_scale.main(arguments[1:])
        return
    lines = "\n".join(f"  {name:<12}{one.title}" for name, one in EXPERIMENTS.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks paper",
        description=__doc__,
        epilog=f"experiments:\n{lines}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="+", choices=[*EXPERIMENTS, "all"], metavar="NAME")
    parser.add_argument("--seeds", type=int, help="final seeds, at least 6. Default: those of the protocol")
    parser.add_argument("--quick", action="store_true", help="a few steps; its numbers mean nothing, and none is kept")
    parser.add_argument("--draw", action="store_true", help="draw the figures anew from the results")
    parser.add_argument("--output_dir", type=Path, help="folder of results and figures instead of the repository's")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    for name in EXPERIMENTS if "all" in options.names else options.names:
        try:
            _do(EXPERIMENTS[name], options)
        except ValueError as error:
            sys.exit(f"{name}: {error}")


def _do(experiment: Experiment, options: argparse.Namespace) -> None:
    folder, images = (options.output_dir, options.output_dir) if options.output_dir else (FOLDER, IMAGES)
    file, image = folder / f"{experiment.name}.csv", images / f"{experiment.name}.png"
    if options.draw:
        experiment.figure(read(file, experiment.kind)[1], image)
        print(image)
        return
    protocol = experiment.protocol.with_seeds(options.seeds)
    protocol = protocol.quick() if options.quick else protocol
    facts = {**environment(torch.device("cpu")), "command": command_of(experiment, options)}
    facts |= experiment.facts(protocol)
    began = time.process_time()
    rows = experiment.run(protocol)
    of_rows = sum(getattr(row, "cpu_seconds", None) or 0.0 for row in rows)  # more, where a command went on
    facts["cpu_seconds"] = f"{max(time.process_time() - began, of_rows):.0f}"
    kept = options.output_dir or not options.quick
    if kept:
        write(file, experiment.kind, facts, rows)
    print(f"{experiment.title}\n\n{experiment.paragraph(rows)}\n\n{facts['cpu_seconds']} CPU seconds")
    if not kept:
        return
    experiment.figure(rows, image)
    print(f"{file}\n{image}")


def command_of(experiment: Experiment, options: argparse.Namespace) -> str:
    """Return the command that makes these rows again, without the place that they are written to."""
    words = ["python -m benchmarks paper", experiment.name]
    words += [f"--seeds {options.seeds}"] if options.seeds else []
    return " ".join([*words, "--quick"] if options.quick else words)
