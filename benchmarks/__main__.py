"""``python -m benchmarks [static | report]``."""

import argparse
import sys
from pathlib import Path

import torch

from benchmarks.cases import CASES, Case, make_batch
from benchmarks.measure import interleaved_times, peak_bytes, relative_error
from benchmarks.results import HEADER, ROOT, Row, environment, fill_in, write_csv
from benchmarks.static import command as static
from humanline_fused import choose_impl

LIMITS = {torch.float32: (1e-5, 1e-5), torch.bfloat16: (1e-5, 2**-8)}
"""Relative errors that a right answer may have, by the logits' dtype: of the loss, of dlogits.

A log-prob of 10 nats has a float32 rounding of 1e-6, and its log-ratio is ten times smaller; a bfloat16 rounds to 2⁻⁹.
"""


def compare(case: Case, shape: tuple[int, int, int], device: torch.device, repeats: int) -> list[Row]:
    """One row per provider. Answers are compared first: a provider whose answer is wrong gets no time."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    batch = make_batch(*shape, dtype, device)
    providers = case.providers()
    oracle = case.oracle(batch)
    errors = {
        name: [relative_error(got, true) for got, true in zip(run(batch), oracle, strict=True)]
        for name, run in providers.items()
    }
    right = {
        name: run
        for name, run in providers.items()
        if all(error <= limit for error, limit in zip(errors[name], LIMITS[dtype], strict=True))
    }
    calls = {name: (lambda run=run: run(batch)) for name, run in right.items()}
    times = dict(zip(calls, interleaved_times(list(calls.values()), repeats, device), strict=True))
    rows = []
    for name in providers:
        taken = times.get(name)
        rows.append(
            Row(
                case.name,
                name,
                ms_20=taken and taken.low,
                ms_median=taken and taken.median,
                ms_80=taken and taken.high,
                peak_mib=taken and peak_bytes(calls[name], device) / 2**20,
                loss_error=errors[name][0],
                gradient_error=errors[name][1],
            )
        )
    return rows


def print_table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    for row in [header, tuple("-" * width for width in widths), *rows]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def seed(shape: tuple[int, int, int] | None, repeats: int, csv: Path | None) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if shape is None:
        shape = (8, 1024, 128256) if device.type == "cuda" else (4, 128, 32000)
    facts = environment(device, shape)
    impl, why = choose_impl("auto", device, torch.bfloat16 if device.type == "cuda" else torch.float32)
    print(f"{facts['machine']}; torch {facts['torch']}; humanline_fused uses {impl}: {why}")
    print(f"Forward and backward on logits, {facts['shape']}, 30 % of the rows masked, bounds ±1.5.")
    if device.type == "cpu":
        print("No GPU: the Triton kernels are not timed (their interpreter's times mean nothing).")
    print()
    rows = [row for case in CASES for row in compare(case, shape, device, repeats)]
    print_table(HEADER, [row.cells() for row in rows])
    print("\nPeak: beyond the inputs, dlogits included. Errors: relative, against float64.")
    if csv:
        write_csv(csv, facts, rows)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--shape", type=int, nargs=3, metavar=("B", "T", "V"), help="of the logits")
    parser.add_argument("--repeats", type=int, default=5, help="timed calls per provider, at least 2")
    parser.add_argument("--csv", type=Path, help="also write the figures, and the machine's facts, to this file")
    commands = parser.add_subparsers(dest="command")
    commands.add_parser("static", help="what every kernel's loops cost, cross-compiled without a GPU", add_help=False)
    commands.add_parser("report", help="make the tables of README.md anew from the files that they name")
    if arguments[:1] == ["static"]:
        return static.main(arguments[1:])
    options = parser.parse_args(arguments)
    if options.repeats < 2:
        parser.error(f"--repeats: expected at least 2, got {options.repeats}")
    if options.command == "report":
        readme = ROOT / "README.md"
        readme.write_text(fill_in(readme.read_text()))
    else:
        seed(options.shape and tuple(options.shape), options.repeats, options.csv)


if __name__ == "__main__":
    main(sys.argv[1:])
