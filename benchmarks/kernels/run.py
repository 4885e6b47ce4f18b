"""``python -m benchmarks run``: cases compared here and now, in one table."""

import argparse
from pathlib import Path

import torch

from benchmarks.batches import MASKED_SHARE, AnyBatch, random_batch
from benchmarks.kernels.cases import CASES, HEAD_CASES, LOGITS_CASES, MODES
from benchmarks.kernels.compare import compare
from benchmarks.kernels.figures import Row, figures
from benchmarks.kernels.kernel_goals import HEAD_GOALS_ON_A_CPU, judged
from benchmarks.kernels.providers import KEYS, announced, sources
from benchmarks.machine import environment
from benchmarks.peers.installed import use_wheels
from benchmarks.results import write
from benchmarks.tables import columns
from humanline_fused import choose_impl


def main(arguments: list[str]) -> None:
    options = _options(arguments)
    if options.wheels:
        use_wheels(options.wheels)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    facts = environment(device)
    impl, why = choose_impl("auto", device, dtype)
    print(f"{facts['machine']}; torch {facts['torch']}; humanline_fused uses {impl}: {why}")
    if device.type == "cpu":
        print("No GPU: the Triton kernels are not timed (their interpreter's times mean nothing).")
    providers = announced(options.providers, device)
    rows: list[Row] = []
    for of_kind in (LOGITS_CASES, HEAD_CASES):
        chosen = [CASES[name] for name in options.cases if name in of_kind]
        if not chosen:
            continue
        batch = _batch(of_kind is HEAD_CASES, device, dtype, options)
        sizes = " ".join(f"{axis}={size}" for axis, size in batch.shape.items())
        print(f"{sizes}, {dtype}, {batch.counted} of {batch.loss_mask.numel()} rows count.")
        for case in chosen:
            for mode in case.modes:
                if mode in options.mode:
                    rows += compare(case, mode, batch, providers, options.repeats)
        del batch
    print(f"\n{columns(figures(rows))}")
    print("\nGB/s, TFLOP/s: of the case's floor. Peak: beyond the inputs, gradients included.")
    print("Errors: relative, against float64.")
    on_hidden_states = [row for row in rows if row.H]
    if on_hidden_states and device.type == "cpu":
        goals = judged(on_hidden_states, HEAD_GOALS_ON_A_CPU)
        print(f"\n{columns([line for line in goals if line[''] != 'not measured'])}")
    if options.csv:
        write(options.csv, Row, {**facts, **sources(providers)}, rows)


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks run", description=__doc__)
    known = f"of {', '.join(CASES)}; without one, all on logits; 'head' is all on hidden states"
    parser.add_argument("cases", nargs="*", metavar="CASE", help=known)
    parser.add_argument("--mode", nargs="+", choices=MODES, default=MODES, help="the value alone, or with its gradient")
    parser.add_argument("--providers", nargs="+", choices=KEYS, default=KEYS, help="those that are installed")
    parser.add_argument("--shape", type=int, nargs=3, metavar=("B", "T", "V"), help="of the logits")
    parser.add_argument("--hidden", type=int, metavar="H", help="of the hidden states, even")
    parser.add_argument("--masked", type=float, default=MASKED_SHARE, help="share of the rows that does not count")
    parser.add_argument("--repeats", type=int, default=5, help="timed calls per provider, at least 2")
    parser.add_argument("--csv", type=Path, help="also write the figures, and the machine's facts, to this file")
    parser.add_argument("--wheels", type=Path, help="folder of pure-Python wheels of peers that are not installed")
    options = parser.parse_args(arguments)
    named = [name for given in options.cases for name in (HEAD_CASES if given == "head" else [given])]
    options.cases = named or [*LOGITS_CASES]
    if unknown := sorted(set(named) - set(CASES)):
        parser.error(f"expected cases of {', '.join(CASES)}, got {', '.join(unknown)}")
    if options.repeats < 2:
        parser.error(f"--repeats: expected at least 2, got {options.repeats}")
    return options


def _batch(on_hidden_states: bool, device: torch.device, dtype: torch.dtype, options: argparse.Namespace) -> AnyBatch:
    """Of the sizes that were asked for, or of defaults that suit the device."""
    *shape, H = (8, 1024, 128256, 4096) if device.type == "cuda" else (8, 512, 32000, 512)
    if not on_hidden_states and device.type == "cpu":
        shape = 4, 128, 32000
    B, T, V = options.shape or shape
    return random_batch(B, T, V, dtype, device, options.masked, (options.hidden or H) if on_hidden_states else None)
