"""``python -m benchmarks run``: cases compared here and now, in one table."""

import argparse
from pathlib import Path

import torch

from benchmarks.cases import CASES, MODES, make_batch
from benchmarks.compare import compare
from benchmarks.peers import use_wheels
from benchmarks.providers import KEYS, available, sources
from benchmarks.results import HEADER, environment, write_csv
from benchmarks.static.report import columns
from humanline_fused import choose_impl

SHORT = ["dpo", "kto", "grpo", "--mode", "full", "--providers", "halos", "ours"]
"""What a bare ``python -m benchmarks`` runs."""


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks run", description=__doc__)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}; without one, all")
    parser.add_argument("--mode", nargs="+", choices=MODES, default=MODES, help="the value alone, or with its gradient")
    parser.add_argument("--providers", nargs="+", choices=KEYS, default=KEYS, help="those that are installed")
    parser.add_argument("--shape", type=int, nargs=3, metavar=("B", "T", "V"), help="of the logits")
    parser.add_argument("--repeats", type=int, default=5, help="timed calls per provider, at least 2")
    parser.add_argument("--csv", type=Path, help="also write the figures, and the machine's facts, to this file")
    parser.add_argument("--wheels", type=Path, help="folder of pure-Python wheels of peers that are not installed")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.cases) - set(CASES))
    if unknown:
        parser.error(f"expected cases of {', '.join(CASES)}, got {', '.join(unknown)}")
    if options.repeats < 2:
        parser.error(f"--repeats: expected at least 2, got {options.repeats}")
    if options.wheels:
        use_wheels(options.wheels)

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    B, T, V = options.shape or ((8, 1024, 128256) if device.type == "cuda" else (4, 128, 32000))
    facts = environment(device)
    impl, why = choose_impl("auto", device, dtype)
    print(f"{facts['machine']}; torch {facts['torch']}; humanline_fused uses {impl}: {why}")
    batch = make_batch(B, T, V, dtype, device)
    print(f"B={B} T={T} V={V}, {dtype}, {int(batch.loss_mask.sum())} of {B * T} rows count.")
    if device.type == "cpu":
        print("No GPU: the Triton kernels are not timed (their interpreter's times mean nothing).")
    providers, obstacles = available(options.providers, device)
    for name, source in sources(providers).items():
        print(f"{name}: {source}")
    for obstacle in obstacles:
        print(obstacle)
    rows = [
        row
        for case in (CASES[name] for name in options.cases or CASES)
        for mode in case.passes
        if mode in options.mode
        for row in compare(case, mode, batch, providers, options.repeats)
    ]
    print()
    print(columns([HEADER, *(row.cells() for row in rows)]))
    print("\nGB/s: of the case's floor. Peak: beyond the inputs, dlogits included. Errors: relative, against float64.")
    if options.csv:
        write_csv(options.csv, {**facts, **sources(providers)}, rows)
