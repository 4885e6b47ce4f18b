"""``python -m benchmarks [run | train | gpu | static | report]``; bare, a short run."""

import sys

USAGE = """usage: python -m benchmarks [COMMAND] [-h]

  run      compare cases here and now
  train    what a training step costs, of whole trainers
  gpu      everything that belongs on a GPU, in restartable parts
  static   the kernels' machine code, read without a GPU
  report   make the tables of README.md and docs/performance.md anew

Without a command: a short run."""


def main(arguments: list[str]) -> None:
    """Each command is imported when it is called: ``report`` and ``static`` need no provider."""
    command, *rest = arguments if arguments and not arguments[0].startswith("-") else ["", *arguments]
    match command:
        case "" if rest in (["-h"], ["--help"]):
            print(USAGE)
        case "":
            from benchmarks.kernels.run import SHORT
            from benchmarks.kernels.run import main as run

            run([*SHORT, *rest])
        case "run":
            from benchmarks.kernels.run import main as run

            run(rest)
        case "train":
            from benchmarks.training.train import main as train

            train(rest)
        case "gpu":
            from benchmarks.gpu import main as gpu

            gpu(rest)
        case "static":
            from benchmarks.static.check import main as static

            static(rest)
        case "report":
            from benchmarks.report import main as report

            report()
        case _:
            sys.exit(f"{USAGE}\n\nunknown command: {command}")


if __name__ == "__main__":
    main(sys.argv[1:])
