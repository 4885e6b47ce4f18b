"""``python -m benchmarks [run | train | data | paper | gpu | host | static | report]``; bare, a short run."""

import importlib
import sys

VERBS = {
    "run": ("benchmarks.kernels.run", "compare cases here and now"),
    "train": ("benchmarks.training.train", "the cost of a training step, of whole trainers"),
    "data": ("benchmarks.preparation", "how fast rows become tokens, and what these keep in memory"),
    "paper": ("benchmarks.paper.command", "the paper's claims, repeated with tiny policies and a small Llama"),
    "gpu": ("benchmarks.gpu", "everything that belongs on a GPU, in restartable parts"),
    "host": ("benchmarks.host", "what a loss costs the host, beside its kernels"),
    "static": ("benchmarks.static.static_report", "the kernels' machine code, read without a GPU"),
    "report": ("benchmarks.report", "make the tables of README.md and docs/performance.md anew"),
}
LINES = "\n".join(f"  {verb:8} {line}" for verb, (_, line) in VERBS.items())
USAGE = f"usage: python -m benchmarks [COMMAND] [-h]\n\n{LINES}\n\nWithout a command: a short run."

SHORT = ["--mode", "full", "--providers", "halos", "ours"]  # of the plain case of every objective


def main(arguments: list[str]) -> None:
    """Each command is imported when it is called: ``report`` and ``static`` need no provider."""
    verb, *rest = arguments if arguments and not arguments[0].startswith("-") else ["", *arguments]
    if not verb and rest in (["-h"], ["--help"]):
        print(USAGE)
        return
    if not verb:
        from benchmarks.objectives import OBJECTIVES

        verb, rest = "run", [*OBJECTIVES, *SHORT, *rest]
    if verb not in VERBS:
        sys.exit(f"{USAGE}\n\nunknown command: {verb}")
    importlib.import_module(VERBS[verb][0]).main(rest)


if __name__ == "__main__":
    main(sys.argv[1:])
