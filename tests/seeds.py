"""``torch.manual_seed`` without a GPU, for which torch would keep each seed and the text of its caller's stack."""

from typing import Any

import torch


def keep_no_seeds_for_gpus() -> None:
    if not torch.accelerator.is_available():
        libraries: list[Any] = [torch.cuda.random, torch.xpu.random, torch.mtia]
        for library in libraries:
            library._lazy_call = _nothing


def _nothing(*call: object, **settings: object) -> None:
    pass
