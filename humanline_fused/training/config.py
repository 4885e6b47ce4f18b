"""Every setting of a run: transformers' TrainingArguments, humanline's own, and defaults that do not hurt."""

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from transformers import TrainingArguments

from humanline_fused.types import HumanlineClamp, Impl

Objective = Literal["dpo", "kto", "grpo"]
Reference = Literal["lookahead", "copy", "frozen"]

DEFAULT_BETA = {"dpo": 0.1, "kto": 0.1, "grpo": 0.0}
"""As TRL's."""


def _setting(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass
class HumanlineConfig(TrainingArguments):
    """Settings of a :class:`HumanlineTrainer`; every field is also a command-line option and a YAML key.

    The clamp and the sync are switched separately: ``clamp`` takes the one, ``reference="frozen"`` the other, and
    ``clamp=False, reference="frozen"`` is the plain loss (the four combinations of the paper's ablation).
    ``per_device_train_batch_size`` counts pairs for DPO, completions for KTO and GRPO.

    Raises:
        ValueError: a setting has no meaning; the message says what was expected and what came.

    Source: arXiv 2509.24207, sections 4 and 5.

    >>> HumanlineConfig(output_dir="run", objective="kto", sync_every=4, report_to="none", use_cpu=True).beta
    0.1
    """

    model: str | None = _setting(None, "The policy at the start: a folder that save_pretrained wrote, or a name.")
    model_dtype: str = _setting(
        "float32",
        "Data type of the weights. bfloat16 weights lose the updates of small learning rates; "
        "bf16=true computes in bfloat16 either way.",
    )
    dataset: str | None = _setting(
        None,
        "Training data: a JSONL or Parquet file, a folder that datasets saved, or a name. Columns: prompt, chosen, "
        "rejected (dpo) | prompt, completion, label (kto) | prompt, completions, rewards (grpo).",
    )
    dataset_split: str = _setting("train", "Split of the training data, where it has several.")
    eval_dataset: str | None = _setting(None, "Held-out data, in the same columns.")
    eval_dataset_split: str = _setting("test", "Split of the held-out data, where it has several.")
    max_length: int = _setting(
        1024,
        "Tokens of prompt and completion. Longer sequences keep their start; a prompt that fills it alone is dropped.",
    )

    objective: Objective = _setting("dpo", "The loss.")
    reference: Reference = _setting(
        "lookahead",
        "Who plays the reference. lookahead: the policy of up to sync_every updates ago, scored ahead, without a second "
        "model. copy: a second model that is overwritten in place; the same numbers. frozen: the policy at the start "
        "(no sync).",
    )
    sync_every: int = _setting(1, "k: optimizer steps between two syncs of the reference.")
    clamp: bool = _setting(True, "Clamp every token's log-ratio to [log_epsilon_P, log_epsilon_R].")
    log_epsilon_P: float = _setting(-1.5, "Lower bound of the log-ratio, nats, <= 0.")
    log_epsilon_R: float = _setting(1.5, "Upper bound of the log-ratio, nats, >= 0.")
    beta: float | None = _setting(
        None, "Weight of the implicit reward (dpo, kto: default 0.1) or of the KL penalty (grpo: default 0)."
    )
    label_smoothing: float = _setting(0.0, "dpo: share of pairs whose preference is the wrong way round, in [0, 0.5].")
    desirable_weight: float = _setting(1.0, "kto: weight of the desirable completions' loss.")
    undesirable_weight: float = _setting(1.0, "kto: weight of the undesirable completions' loss.")
    epsilon: float = _setting(0.2, "grpo: PPO's clip of the ratio to [1 - epsilon, 1 + epsilon_high].")
    epsilon_high: float | None = _setting(None, "grpo: upper end of the clip; default epsilon.")
    scale_rewards: bool = _setting(True, "grpo: divide advantages by the standard deviation of their group.")
    impl: str = _setting("auto", "Who computes the loss: auto, triton or eager.")
    disable_dropout: bool = _setting(
        True, "Turn dropout off, so that policy and reference differ by the updates alone."
    )

    learning_rate: float = _setting(1e-6, "Initial learning rate. Retune by 0.1x to 4x when clamp or sync change.")
    lr_scheduler_type: str = _setting("constant_with_warmup", "Learning-rate schedule.")
    warmup_steps: float = _setting(0.1, "Warm-up in steps; below 1, as a share of all steps.")
    weight_decay: float = _setting(0.01, "Weight decay of AdamW.")
    logging_steps: float = _setting(10, "Steps between two log lines.")
    logging_first_step: bool = _setting(True, "Log the first step.")
    logging_nan_inf_filter: bool = _setting(False, "Hide NaN and infinite losses from the log.")
    remove_unused_columns: bool = _setting(False, "Has no effect: the data are read by column.")
    report_to: None | str | list[str] = _setting(
        "none", "tensorboard, wandb, trackio ... metrics.jsonl is always there."
    )
    bf16: bool | None = _setting(None, "Compute in bfloat16. Default: where the GPU supports it, unless fp16 is set.")

    def __post_init__(self) -> None:
        if self.bf16 is None:
            self.bf16 = not (self.fp16 or self.use_cpu) and torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        super().__post_init__()
        for name, kind in (("objective", Objective), ("reference", Reference), ("impl", Impl)):
            self._expect(name, getattr(self, name) in get_args(kind), " or ".join(map(repr, get_args(kind))))
        if self.beta is None:
            self.beta = DEFAULT_BETA[self.objective]
        for name in ("sync_every", "max_length"):
            value = getattr(self, name)
            self._expect(name, isinstance(value, int) and not isinstance(value, bool) and value >= 1, "an integer >= 1")
        for name in ("beta", "desirable_weight", "undesirable_weight", "epsilon_high"):
            value = getattr(self, name)
            self._expect(name, value is None or 0 <= value < float("inf"), "a finite number >= 0")
        self._expect("epsilon", 0 <= self.epsilon <= 1, "a number in [0, 1]")
        self._expect("label_smoothing", 0 <= self.label_smoothing <= 0.5, "a number in [0, 0.5]")
        HumanlineClamp(self.log_epsilon_P, self.log_epsilon_R)
        self._refuse()

    def _expect(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise ValueError(f"{name}: expected {expected}, got {getattr(self, name)!r}")

    def _refuse(self) -> None:
        """What transformers offers and a run that reads its batches ahead cannot have."""
        reasons = {
            "enable_jit_checkpoint": "it saves in the middle of a step, where the reference cannot be restored",
            "auto_find_batch_size": "it changes the batches that were scored ahead",
            "label_smoothing_factor": "it is another loss's; DPO's is label_smoothing",
            "parallelism_config": "tensor, context and sequence parallelism are not supported yet",
        }
        for name, reason in reasons.items():
            if getattr(self, name, None):
                raise ValueError(f"{name}: expected it to be off ({reason}), got {getattr(self, name)!r}")
        if self.push_to_hub and self.hub_strategy != "end":
            raise ValueError(
                "push_to_hub: expected hub_strategy='end' (a checkpoint is uploaded from where it is written, and moves "
                f"when it is complete), got {self.hub_strategy!r}"
            )

    @property
    def humanline_clamp(self) -> HumanlineClamp | None:
        """The bounds as the losses take them; None where ``clamp`` is off."""
        return HumanlineClamp(self.log_epsilon_P, self.log_epsilon_R) if self.clamp else None
