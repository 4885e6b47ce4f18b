"""The same operations as others compute them. Each peer is told by whose code it calls or follows.

TRL and Liger give log-probs and a GRPO loss on logits; the losses around TRL's log-probs are HALOs' formulas. Both get
ids and mask shifted, as ours does: their trainers slice ``logits[:, :-1]``, whose backward costs three more passes.
"""

import functools
import importlib.metadata
import importlib.util
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from benchmarks.cases import Batch, Case

TRL_VERSION, LIGER_VERSION = "1.16.0", "0.8.5"
HALOS = "ContextualAI/HALOs at aa02f66, train/trainers.py (followed)"
TRL = f"trl {TRL_VERSION}: kernels/logprob_entropy.py on a GPU, trainer/utils.py selective_log_softmax elsewhere"
LIGER = (
    f"liger-kernel {LIGER_VERSION}: transformers/grpo_loss.py triton_grpo_loss, fused_selective_log_softmax; "
    "inplace=False (its default is True), so its peak holds a dlogits"
)


def loss_on_log_probs(case: Case, logp: Tensor, ref_logp: Tensor, batch: Batch) -> Tensor:
    """ContextualAI/HALOs at aa02f66, ``train/trainers.py``; log-probs [B, T], 0 where they do not count."""
    mask, settings = batch.loss_mask, case.settings
    log_ratio = (logp - ref_logp).clamp(-case.log_epsilon, case.log_epsilon)
    if case.operation == "grpo":
        ratio, advantages = log_ratio.exp(), batch.advantages.unsqueeze(-1)
        clipped = ratio.clamp(1 - settings["epsilon"], 1 + settings["epsilon"])
        k3 = torch.exp(ref_logp - logp) - (ref_logp - logp) - 1
        loss = -torch.min(advantages * ratio, advantages * clipped) + settings["beta"] * k3
        return (loss * mask).sum() / mask.sum()
    rewards = log_ratio.sum(-1)
    if case.operation == "dpo":
        chosen, rejected = rewards.chunk(2)
        return -logsigmoid(settings["beta"] * (chosen - rejected)).mean()
    desirable = 1 - torch.sigmoid(settings["beta"] * (rewards - settings["kl"]))
    undesirable = 1 - torch.sigmoid(settings["beta"] * (settings["kl"] - rewards))
    return torch.where(batch.desirable, desirable, undesirable).mean()


def _halos_logp(logits: Tensor, batch: Batch, softcap: float | None) -> Tensor:
    logits = logits.float()
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    labels = batch.target_ids.masked_fill(~batch.loss_mask, 0)
    return torch.gather(logits.log_softmax(-1), dim=2, index=labels.unsqueeze(2)).squeeze(2) * batch.loss_mask


def halos(case: Case, logits: Tensor, batch: Batch) -> Tensor:
    """Log-probs of the whole vocabulary, every row, in float32."""
    logp = _halos_logp(logits, batch, case.softcap)
    if not case.has_reference:
        return logp
    with torch.no_grad():
        ref_logp = _halos_logp(batch.ref_logits, batch, case.softcap)
    return loss_on_log_probs(case, logp, ref_logp, batch)


@functools.lru_cache(maxsize=1)
def _compiled(case_name: str, shape: torch.Size):
    torch.compiler.reset()  # or what was compiled before counts as recompilation, which ends in eager
    return torch.compile(halos, dynamic=False)


def compiled_halos(case: Case, logits: Tensor, batch: Batch) -> Tensor:
    return _compiled(case.name, logits.shape)(case, logits, batch)


def compile_obstacle(device: torch.device) -> str | None:
    if device.type == "cpu" and not any(shutil.which(compiler) for compiler in ("g++", "clang++")):
        return "inductor needs a C++ compiler"
    if device.type == "cuda" and not any(shutil.which(compiler) for compiler in ("gcc", "clang", "cc")):
        return "Triton's launcher needs a C compiler"
    return None


def trl(case: Case, logits: Tensor, batch: Batch, *, kernels: bool | None = None) -> Tensor:
    """``selective_log_softmax``, which is the Triton kernel (entropy included) on a GPU and eager PyTorch elsewhere.

    Args:
        kernels: call the Triton kernel, whatever the device; None is TRL's own choice.
    """
    if kernels or logits.is_cuda:  # the trainers' wrapper of the kernel imports all that a trainer needs
        from trl.kernels import selective_log_softmax_and_entropy  # pyright: ignore[reportMissingImports]

        def log_probs(logits: Tensor) -> Tensor:
            return selective_log_softmax_and_entropy(logits, batch.target_ids, 1.0, batch.loss_mask)[0]
    else:
        from trl.trainer.utils import selective_log_softmax  # pyright: ignore[reportMissingImports]

        def log_probs(logits: Tensor) -> Tensor:
            return selective_log_softmax(logits, batch.target_ids, row_mask=batch.loss_mask)

    logp = log_probs(logits)
    if not case.has_reference:
        return logp
    with torch.no_grad():
        ref_logp = log_probs(batch.ref_logits)
    return loss_on_log_probs(case, logp, ref_logp, batch)


def liger(case: Case, logits: Tensor, batch: Batch) -> Tensor:
    """The synced reference is the old policy and the KL's reference; it takes T rows for T − 1 targets."""
    from liger_kernel.transformers.grpo_loss import (  # pyright: ignore[reportMissingImports]
        fused_selective_log_softmax,
        triton_grpo_loss,
    )

    ids, mask = batch.target_ids[:, :-1].contiguous(), batch.loss_mask[:, :-1].contiguous()
    ref_logp = fused_selective_log_softmax(batch.ref_logits, ids, temperature=1.0, mask=mask)
    epsilon = case.settings["epsilon"]
    loss, _ = triton_grpo_loss(
        logits,
        ref_logp,
        ref_logp,
        ids,
        batch.advantages,
        mask,
        temperature=1.0,
        beta=case.settings["beta"],
        eps_low=epsilon,
        eps_high=epsilon,
        inplace=False,
        loss_type="bnpo",  # the mean over tokens
        reduce=True,
    )
    return loss


def installed_obstacle(distribution: str, version: str) -> str | None:
    try:
        installed = importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed, and no wheel of it in --wheels"
    return None if installed == version else f"{version} is what the code here calls, {installed} is installed"


def trl_obstacle(device: torch.device) -> str | None:
    needed = ("transformers",) if device.type == "cuda" else ("transformers", "accelerate", "datasets", "pandas")
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    return installed_obstacle("trl", TRL_VERSION) or (f"it needs {', '.join(missing)}" if missing else None)


def liger_obstacle(device: torch.device) -> str | None:
    if device.type != "cuda":
        return "its GRPO loss is a Triton kernel"
    return installed_obstacle("liger-kernel", LIGER_VERSION)


def use_wheels(folder: Path) -> None:
    """Put the folder's pure-Python wheels before everything on the path; unpacked, as Triton reads its kernels' source.

    Raises:
        FileNotFoundError: there is none.
    """
    wheels = sorted(folder.glob("*-none-any.whl"))
    if not wheels:
        raise FileNotFoundError(f"--wheels: no pure-Python wheel in {folder}")
    unpacked = tempfile.mkdtemp(prefix="wheels-")
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(unpacked)
    sys.path.insert(0, unpacked)
