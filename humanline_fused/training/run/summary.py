"""Start-up summary of a run."""

from collections.abc import Iterable
from itertools import chain

from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from humanline_fused.impl import Choice
from humanline_fused.reference.adapter import ADAPTER, adapter_tensors
from humanline_fused.training.config import HumanlineConfig
from humanline_fused.training.data.findings import Severity
from humanline_fused.training.data.prepare import PreparedData
from humanline_fused.training.data.prompts import PreparedPrompts
from humanline_fused.training.objectives.objective import Objective
from humanline_fused.training.objectives.settings import LossSettings


def describe(
    config: HumanlineConfig,
    objective: Objective,
    choice: Choice,
    train: PreparedData | PreparedPrompts,
    held_out: PreparedData | None,
) -> str:
    """Return the loss and its implementation, and the data with what a user should know of them, a line each."""
    clamp = f"clamp [{config.log_epsilon_P:g}, {config.log_epsilon_R:g}] nats" if config.clamp else "clamp off"
    perception = describe_sampling(config) or clamp
    options = "".join(f", {option}" for option in describe_options(config))
    loss = f"{objective.name}: {perception}{options}, computed by {choice.impl} ({choice.why})"
    data = f"data: {train.summary()}" + (f"; held out: {held_out.summary()}" if held_out else "")
    said = train.findings.lines(Severity.LOSS, Severity.NOTE)
    said += [
        f"held out: {line}" for line in (held_out.findings.lines(Severity.LOSS, Severity.NOTE) if held_out else ())
    ]
    return "\n".join([loss, data, *(f"  {line}" for line in said)])


def describe_options(config: HumanlineConfig) -> list[str]:
    """Return a phrase on every option of the loss that is not its default.

    >>> describe_options(HumanlineConfig("run", loss_temperature=0.7, entropy_coef=0.01, use_cpu=True))
    ['at temperature 0.7', 'entropy bonus 0.01']
    """
    said, temperature = [], config.temperature_of_loss
    if temperature != 1:
        sampled = config.loss_temperature is None
        said.append(f"at temperature {temperature:g}" + (", that of the samples" if sampled else ""))
    if config.entropy_coef:
        said.append(f"entropy bonus {config.entropy_coef:g}")
    if config.one_launch:
        said.append("in one launch where the device allows")
    return said


def describe_sampling(config: LossSettings) -> str | None:
    """Return one phrase on humanline sampling, or None with the clamp.

    >>> describe_sampling(LossSettings(perception="sampling", gamma_P=0.7))
    'humanline sampling, B_P ~ Beta(0.7, 1), B_R ~ Beta(0.01, 1)'
    """
    if config.perception == "clamp":
        return None
    sides = (("P", config.gamma_P, config.beta_P), ("R", config.gamma_R, config.beta_R))
    return ", ".join(["humanline sampling", *(f"B_{side} ~ Beta({g:g}, {b:g})" for side, g, b in sides)])


def describe_layout(layout: str, why: str) -> str:
    """Return one line on the layout of the batches.

    >>> describe_layout("shared_prompt", "exact for this model")
    'layout: each shared prompt once (shared_prompt: exact for this model)'
    """
    meaning = {
        "shared_prompt": "each shared prompt once",
        "sorted": "padded rows, sorted by length",
        "padded": "padded rows",
    }[layout]
    return f"layout: {meaning} ({layout}: {why})"


def describe_model(config: HumanlineConfig, model: nn.Module, difference: float | None, forwards: int) -> str:
    """Return one line on the placed model: scoring, reference and memory cost of the reference.

    Args:
        model: the policy on this process; its bytes, without a second adapter, are the cost of a second model.
        difference: the largest difference found by the probe, in nats; None if the model computes its own logits.
        forwards: forward passes of a micro-batch.
    """
    head = "head: the model's own logits" if difference is None else f"head check: max |Δlogp| {difference:.0e}"
    second = bytes_of(adapter_tensors(model, ADAPTER).values()) if config.reference == "adapter" else 0
    whole = bytes_of(chain(model.parameters(), model.buffers())) - second
    weights = f"{as_bytes(whole)} of weights"
    reference = {
        "lookahead": f"look-ahead k={config.sync_every}, {weights} saved",
        "copy": f"copy k={config.sync_every}, {weights} more",
        "adapter": f"adapter k={config.sync_every}, {as_bytes(second)} more instead of {weights}",
        "frozen": f"frozen, {weights} more",
    }[config.reference]
    sync = "no sync" if config.reference == "frozen" else "first sync at step 0"
    return f"{head}; reference: {reference}; forwards per micro-batch {forwards}; {sync}"


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of the tensors on this process, counting each tensor once."""
    distinct = {id(tensor): tensor for tensor in tensors}
    local = (tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in distinct.values())
    return sum(tensor.numel() * tensor.element_size() for tensor in local)


def as_bytes(number: float) -> str:
    """Format a number of bytes with a binary unit.

    >>> as_bytes(3 * 1024**3), as_bytes(1536)
    ('3.0 GiB', '1.5 KiB')
    """
    units = ("B", "KiB", "MiB", "GiB")
    power = min(len(units) - 1, max(0, int(number).bit_length() - 1) // 10)
    return f"{number / 1024**power:.1f} {units[power]}" if power else f"{number} B"
