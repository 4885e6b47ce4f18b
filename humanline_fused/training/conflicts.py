"""Settings of transformers that conflict with batches read ahead, or with what a run saves."""

from dataclasses import fields

from transformers import TrainingArguments


def refuse_conflicts(config: TrainingArguments) -> None:
    """Raise ValueError if a setting of transformers conflicts with batches read ahead, or with what a run saves."""
    rounded = "the last evaluation would round the policy's weights, which are then saved; bf16=true computes so"
    reasons = {
        "bf16_full_eval": rounded,
        "fp16_full_eval": rounded,
        "enable_jit_checkpoint": "it saves in the middle of a step, where the reference cannot be restored",
        "auto_find_batch_size": "it changes the batches that were scored ahead",
        "neftune_noise_alpha": "its noise is in the policy's training forward and not in the reference's, so that "
        "humanline would take it for a change of the policy",
        "label_smoothing_factor": "it applies to cross-entropy; DPO's is label_smoothing",
        "parallelism_config": "tensor, context and sequence parallelism are not supported yet",
    }
    for name, reason in reasons.items():
        if getattr(config, name, None):
            raise ValueError(f"{name}: expected it to be off ({reason}), got {getattr(config, name)!r}")
    kwargs = getattr(config.accelerator_config, "gradient_accumulation_kwargs", None) or {}
    if "num_steps" in kwargs:
        raise ValueError(
            "accelerator_config: expected no num_steps (gradient_accumulation_steps has them), "
            f"got {kwargs['num_steps']!r}"
        )
    ignored = {
        "dataloader_drop_last": "an epoch always leaves out an incomplete global batch",
        "dataloader_num_workers": "the data are tokenised before the first step",
        "ignore_data_skip": "a resumed run has no data to skip",
        "train_sampling_strategy": "every epoch is a new permutation",
    }
    defaults = {field.name: field.default for field in fields(config)}
    for name, reason in ignored.items():
        if name in defaults and getattr(config, name) != defaults[name]:
            raise ValueError(f"{name}: expected {defaults[name]!r} ({reason}), got {getattr(config, name)!r}")
    if config.push_to_hub and config.hub_strategy != "end":
        raise ValueError(
            "push_to_hub: expected hub_strategy='end' (a checkpoint is renamed when it is complete, which "
            f"would break an upload), got {config.hub_strategy!r}"
        )
