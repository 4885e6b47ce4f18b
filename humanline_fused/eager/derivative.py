"""A loss of log-probs and its derivative, by autograd."""

import torch
from torch import Tensor

from humanline_fused.layer import LossOfLogp, Result


def loss_and_derivative(loss_of_logp: LossOfLogp[Result], logp: Tensor, ref_logp: Tensor) -> tuple[Result, Tensor]:
    # Under the caller's hooks (checkpoint, save_on_cpu) every chunk would compute the model again, or wait.
    kept = torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor)
    with torch.enable_grad(), kept:
        logp = logp.detach().requires_grad_()
        result = loss_of_logp(logp, ref_logp)
        (derivative,) = torch.autograd.grad(result.loss, logp)
    return result._replace(loss=result.loss.detach()), derivative
