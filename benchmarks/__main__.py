"""``python -m benchmarks [static]``."""

import argparse
import sys

import torch

from benchmarks.cases import CASES, Case, make_batch
from benchmarks.measure import interleaved_times, peak_bytes, relative_error
from benchmarks.static import ARCHITECTURES, report
from humanline_fused import choose_impl

ROUNDING = {torch.float32: 1e-6, torch.bfloat16: 2**-8}
"""Relative error of a result rounded once to the dtype, with a float32 sum before it."""


def compare(case: Case, shape: tuple[int, int, int], device: torch.device, repeats: int) -> list[tuple[str, ...]]:
    """One row per provider: milliseconds, peak MiB beyond the inputs, errors against float64.

    Answers are compared first: a provider whose answer is wrong gets no time.
    """
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    batch = make_batch(*shape, dtype, device)
    providers = case.providers()
    oracle = case.oracle(batch)
    errors = {
        name: [relative_error(got, true) for got, true in zip(run(batch), oracle, strict=True)]
        for name, run in providers.items()
    }
    baseline = max(next(iter(errors.values())))
    right = {name: run for name, run in providers.items() if max(errors[name]) <= baseline + ROUNDING[dtype]}
    calls = {name: (lambda run=run: run(batch)) for name, run in right.items()}
    times = dict(zip(calls, interleaved_times(list(calls.values()), repeats, device), strict=True))
    rows = []
    for name in providers:
        loss_error, gradient_error = (f"{error:.1e}" for error in errors[name])
        if name in times:
            taken = times[name]
            milliseconds = f"{taken.median:.1f} ({taken.low:.1f}-{taken.high:.1f})"
            mebibytes = f"{peak_bytes(calls[name], device) / 2**20:.0f}"
        else:
            milliseconds = mebibytes = "wrong answer"
        rows.append((case.name, name, milliseconds, mebibytes, loss_error, gradient_error))
    return rows


def print_table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    for row in [header, tuple("-" * width for width in widths), *rows]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def seed(shape: tuple[int, int, int] | None, repeats: int) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if shape is None:
        shape = (8, 1024, 128256) if device.type == "cuda" else (4, 128, 32000)
    impl, why = choose_impl("auto", device, torch.bfloat16 if device.type == "cuda" else torch.float32)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {device}; humanline_fused uses {impl}: {why}")
    print(f"Forward and backward on logits [B, T, V] = {list(shape)}, 30 % of the rows masked, bounds ±1.5.")
    if device.type == "cpu":
        print("No GPU: the Triton kernels are not timed (their interpreter's times mean nothing).")
    print()
    rows = [row for case in CASES for row in compare(case, shape, device, repeats)]
    header = ("case", "provider", "ms median (20-80 %)", "peak MiB", "loss error", "gradient error")
    print_table(header, rows)
    print("\nPeak: beyond the inputs, dlogits included. Errors: relative, against float64.")


def static(architectures: list[str]) -> None:
    rows = [(r.kernel, r.arch, str(r.registers), str(r.spills), str(r.shared)) for r in report(architectures)]
    print_table(("kernel", "arch", "registers", "spills (bytes)", "shared (bytes)"), rows)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--shape", type=int, nargs=3, metavar=("B", "T", "V"), help="of the logits")
    parser.add_argument("--repeats", type=int, default=5, help="timed calls per provider, at least 2")
    commands = parser.add_subparsers(dest="command")
    parts = commands.add_parser("static", help="resources of every kernel, cross-compiled without a GPU")
    parts.add_argument("--arch", nargs="+", default=["sm_90"], choices=ARCHITECTURES)
    options = parser.parse_args(arguments)
    if options.repeats < 2:
        parser.error(f"--repeats: expected at least 2, got {options.repeats}")
    if options.command == "static":
        static(options.arch)
    else:
        seed(options.shape and tuple(options.shape), options.repeats)


if __name__ == "__main__":
    main(sys.argv[1:])
