"""Double backward is an error: the kernels' gradients have no graph."""

import torch


def refuse_double_backward() -> None:
    """Called first in every backward: grad mode is on there only under ``create_graph=True``."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            "double backward: the kernels' gradients cannot be differentiated again (create_graph=True); "
            "expected a plain backward, or impl='eager'"
        )
