"""The command ``humanline info``: versions, the device, and what computes each operation on it."""

import importlib.metadata
import platform
from collections.abc import Sequence
from itertools import groupby

import torch

from humanline_fused import __version__
from humanline_fused.impl import choose_impl
from humanline_fused.printing import Parser

DISTRIBUTIONS = ("torch", "triton", "transformers", "accelerate", "datasets", "peft", "trl")
OPERATIONS = ("token_log_ratio", "dpo_loss", "kto_loss", "grpo_loss")
DTYPES = ("bfloat16", "float16", "float32", "float64")


def info(argv: Sequence[str], description: str) -> None:
    """Print the lines.

    Args:
        argv: the command's arguments, none.
        description: of the command.
    """
    Parser(prog="humanline info", description=description).parse_args(argv)
    print(f"{'humanline-fused':<16} {__version__}")
    print(f"{'python':<16} {platform.python_version()}")
    for name in DISTRIBUTIONS:
        try:
            print(f"{name:<16} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            print(f"{name:<16} not installed")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine()
    print(f"{'device':<16} {device.type} ({name})")
    if device.type == "cuda":
        from humanline_kernels.cache import held_rows_on

        held = held_rows_on(device)
        print(f"{'one_launch':<16} {held.nbytes / 2**20:.1f} MiB of rows in flight, {held.why}")
    print()
    for operation in OPERATIONS:
        choices = ((choose_impl("auto", device, getattr(torch, dtype)), dtype) for dtype in DTYPES)
        for choice, group in groupby(choices, key=lambda pair: pair[0]):
            print(f"{operation:<16} {choice.impl:<7} {', '.join(dtype for _, dtype in group)}: {choice.why}")
