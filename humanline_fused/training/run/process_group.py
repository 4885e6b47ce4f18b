"""Time limit of a process that waits for another one."""

from datetime import timedelta

import torch.distributed as dist
from torch.distributed.distributed_c10d import _set_pg_timeout
from transformers import TrainingArguments

GLOO = ("gloo/transport/", "Application timeout caused pair closure")
"""Parts of a gloo error's text: a place in its source, or none where another thread met the time limit first."""


def limit_waiting(args: TrainingArguments) -> None:
    """Give the processes on CPUs the time limit ``ddp_timeout``, which transformers gives to those on GPUs alone.

    Without it a process waits half an hour for one that is stopped or behind a cut link.
    """
    if args.world_size > 1 and args.device.type == "cpu" and dist.get_backend() == "gloo":
        _set_pg_timeout(timedelta(seconds=args.ddp_timeout))


def waited_in_vain(error: BaseException) -> bool:
    """Return whether an error is that of a process that waited for another one, which ended or is out of reach.

    >>> waited_in_vain(RuntimeError("[gloo/transport/tcp/unbound_buffer.cc:79] Timed out waiting 5000ms for recv"))
    True
    """
    of_gloo = isinstance(error, RuntimeError) and any(part in str(error) for part in GLOO)
    return of_gloo or isinstance(error, dist.DistError)
