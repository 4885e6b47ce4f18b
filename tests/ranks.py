"""A process per rank, forked from one that has imported what they need and done nothing else."""

import multiprocessing
from collections.abc import Callable
from typing import Any

from torch.multiprocessing.spawn import start_processes


def run_ranks(rank_of: Callable[..., None], arguments: tuple[Any, ...], world_size: int) -> None:
    """Calls ``rank_of(rank, *arguments)`` in each; an error of any is raised here.

    A spawned process would import torch anew, and one forked from here would inherit the locks of this one's threads.
    """
    multiprocessing.set_forkserver_preload(["torch.distributed", "humanline_fused"])
    start_processes(rank_of, arguments, nprocs=world_size, start_method="forkserver")
