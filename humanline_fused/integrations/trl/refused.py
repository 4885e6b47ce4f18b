"""Arguments of TRL that humanline does not support, and losses that it does."""

from typing import Any

DPO_LOSSES = (
    "sigmoid",
    "hinge",
    "ipo",
    "exo_pair",
    "nca_pair",
    "robust",
    "bco_pair",
    "sppo_hard",
    "aot_unpaired",
    "apo_zero",
    "apo_down",
    "discopop",
    "sigmoid_norm",
)
"""Losses of TRL's ``DPOTrainer`` that see the policy and the reference only in a sequence's log-ratio."""

KTO_LOSSES = "kto", "apo_zero_unpaired"
"""Losses of TRL's ``KTOTrainer``; both see only log-ratios."""

REFUSED_LOSSES = {
    "sft": "it needs the policy's log-probs, and would get log-ratios",
    "aot": "it sorts the log-probs of policy and reference apart, and would get their difference",
}
"""Losses of TRL that are something else on log-ratios, with the reason."""

REFUSED = {
    "sync_ref_model": (False, "TRL's sync comes after the update and averages; humanline's is sync_every"),
    "precompute_ref_log_probs": (False, "sums over sequences cannot be clamped per token"),
    "use_liger_kernel": (False, "not tested"),
    "f_divergence_type": ("reverse_kl", "not tested; the clamp bounds a log-ratio"),
    "ld_alpha": (None, "not tested; it weights log-probs, which would be log-ratios"),
    "use_weighting": (False, "it computes weights from log-probs, which would be log-ratios"),
    "enable_jit_checkpoint": (False, "it saves in the middle of a step"),
    "parallelism_config": (None, "not tested"),
}
"""TRL arguments that humanline does not support: required value and reason."""


def refuse_arguments(args: Any, losses: tuple[str, ...]) -> None:
    """Raise ValueError for settings that would silently break humanline, before a model is loaded."""
    for loss_type in args.loss_type if isinstance(args.loss_type, list) else [args.loss_type]:
        if loss_type not in losses:
            why = REFUSED_LOSSES.get(loss_type)
            raise ValueError(f"loss_type: expected {', '.join(losses)}, got {loss_type!r}{f' ({why})' if why else ''}")
    for name, (expected, why) in REFUSED.items():
        got = getattr(args, name, expected)
        if got != expected:
            raise ValueError(f"{name}: expected {expected!r} ({why}), got {got!r}")
