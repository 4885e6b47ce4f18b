"""Arguments and settings of TRL, earlier transformers and axolotl that have another name here, or no counterpart."""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

from humanline_fused.validation.values import nearest

OWN_LOSS = "none, or objective, a loss of your own (docs/losses.md)"
SAMPLING = "none: samples are draws from the policy (docs/rounds.md)"
ENGINE = "none: samples come from model.generate (docs/rounds.md)"
LOADED = "none: load the model and pass it to HumanlineTrainer"
ROUNDS = "rollout_every, in optimizer steps (docs/rounds.md)"

OF_TRAINER = {
    "ref_model": "reference_model, for reference='copy' and 'frozen' only; look-ahead needs no second model",
    "tokenizer": "processing_class",
    "data_collator": "none: batches are built from the tokenised examples (docs/data.md)",
    "formatting_func": "none: columns names the columns, and the chat template renders them (docs/data.md)",
    "compute_metrics": "none: an objective's loss returns its metrics (docs/losses.md)",
    "preprocess_logits_for_metrics": "none: the logits are not kept",
    "compute_loss_func": "objective, a loss of your own (docs/losses.md)",
    "optimizer_cls_and_kwargs": "optimizers=(optimizer, scheduler)",
    "model_init": "model, one run at a time",
    "quantization_config": "load_in_4bit in the settings, or a model that is loaded already",
    "reward_funcs": "reward_function, one function (docs/rounds.md)",
    "reward_processing_classes": "none: reward_function gets texts (docs/rounds.md)",
    "rollout_func": ENGINE,
    "tools": ENGINE,
    "environment_factory": ENGINE,
}
"""Counterparts of the arguments of TRL 1.16's ``DPOTrainer``, ``KTOTrainer`` and ``GRPOTrainer``."""

OF_SETTINGS = {
    "max_prompt_length": "max_length, of prompt and completion together; prompts are not cut",
    "truncation_mode": "none: the end is cut, as with keep_start",
    "padding_free": "layout",
    "pad_to_multiple_of": "layout",
    "pad_token": "none: padding is masked, so any token serves",
    "dataset_name": "dataset",
    "dataset_train_split": "dataset_split",
    "dataset_test_split": "eval_dataset_split",
    "shuffle_dataset": "none: every epoch is a new permutation",
    "chat_template_kwargs": "none here, but a column chat_template_kwargs of the data (docs/data.md)",
    "model_name_or_path": "model",
    "model_revision": "revision",
    "dtype": "model_dtype",
    "torch_dtype": "model_dtype",
    "model_init_kwargs": "model_dtype, revision, attn_implementation, trust_remote_code",
    "ref_model_init_kwargs": "none: load the model and pass it as reference_model",
    "cast_lm_head_to_fp32": "none: the losses accumulate in float32 with weights of any type",
    "activation_offloading": "gradient_checkpointing",
    "use_peft": "lora_r",
    "use_dora": "peft_config of HumanlineTrainer",
    "use_rslora": "peft_config of HumanlineTrainer",
    "lora_task_type": "none: the task is a causal language model's",
    "lora_dropout": "none: dropout would make policy and reference differ by more than the updates",
    "lora_modules_to_save": "peft_config of HumanlineTrainer",
    "lora_target_parameters": "peft_config of HumanlineTrainer",
    "load_in_8bit": LOADED,
    "use_bnb_nested_quant": LOADED,
    "bnb_4bit_*": LOADED,
    "sync_ref_model": "reference and sync_every, which sync before the update (docs/moving.md)",
    "ref_model_sync_steps": "sync_every",
    "ref_model_mixup_alpha": "none: a sync copies the whole policy",
    "precompute_ref_*": "none: look-ahead scores the coming batches itself",
    "reference_free": "none: every loss here has a reference",
    "f_divergence_type": OWN_LOSS,
    "f_alpha_divergence_coef": OWN_LOSS,
    "use_weighting": OWN_LOSS,
    "ld_alpha": OWN_LOSS,
    "discopop_tau": OWN_LOSS,
    "loss_weights": OWN_LOSS,
    "delta": OWN_LOSS,
    "router_aux_loss_coef": OWN_LOSS,
    "importance_sampling_level": OWN_LOSS,
    "off_policy_mask_threshold": OWN_LOSS,
    "top_entropy_quantile": OWN_LOSS,
    "use_bias_correction_kl": OWN_LOSS,
    "sapo_*": OWN_LOSS,
    "vespo_*": OWN_LOSS,
    "entropy_*": "entropy_coef, a constant",
    "use_adaptive_entropy": "entropy_coef, a constant",
    "steps_per_generation": ROUNDS,
    "generation_batch_size": ROUNDS,
    "num_iterations": ROUNDS,
    "num_generations_eval": "none: an evaluation draws one answer to each prompt (docs/training.md)",
    "reward_weights": "reward, one function that adds them up (docs/rounds.md)",
    "multi_objective_aggregation": "reward, one function (docs/rounds.md)",
    "top_k": SAMPLING,
    "min_p": SAMPLING,
    "repetition_penalty": SAMPLING,
    "generation_kwargs": SAMPLING,
    "cache_implementation": ENGINE,
    "ds3_gather_for_generation": ENGINE,
    "max_tool_calling_iterations": ENGINE,
    "transformers_continuous_batching_config": ENGINE,
    "use_transformers_*": ENGINE,
    "use_vllm": ENGINE,
    "vllm_*": ENGINE,
    "mask_truncated_completions": "none: a cut completion counts as it is",
    "log_completions": "none: completions.jsonl is always written",
    "log_completions_hub_repo": "none: completions.jsonl is always written",
    "log_multimodal": "none: models of text",
    "log_unique_prompts": "none: completions.jsonl is always written",
    "num_completions_to_print": "none: completions.jsonl is always written",
    "warmup_ratio": "warmup_steps, below 1 a share of all steps",
}
"""Counterparts of the settings of TRL 1.16's ``DPOConfig``, ``KTOConfig``, ``GRPOConfig`` and ``ModelConfig``."""

OF_SETTINGS |= {
    "logging_dir": "none: tensorboard reads TENSORBOARD_LOGGING_DIR",
    "save_safetensors": "none: weights are always saved as safetensors",
    "no_cuda": "use_cpu",
    "group_by_length": "layout",
    "half_precision_backend": "bf16 or fp16",
    "fp16_backend": "bf16 or fp16",
    "use_mps_device": "none: a device that torch finds is used",
    "mixed_precision": "bf16 or fp16",
    "packing": "layout, by default rows without padding",
    "tokenizer_name": "none: the tokenizer is in the model's folder; or processing_class of HumanlineTrainer",
    "chat_template": "none: the tokenizer's own; set it there",
    "dataset_config*": "dataset, as name:config",
    "eval_split": "eval_dataset_split",
    "val_set_size": "eval_fraction",
    "sequence_len": "max_length",
    "cutoff_len": "max_length",
    "max_new_tokens": "max_completion_length",
    "response_length": "max_completion_length",
    "generate_during_eval": "reward, which scores an evaluation's answers (docs/training.md)",
    "adapter": "lora_r",
    "flash_attention": "attn_implementation",
    "lr": "learning_rate",
    "epochs": "num_train_epochs",
    "batch_size": "per_device_train_batch_size",
    "micro_batch_size": "per_device_train_batch_size",
    "wandb_project": "none: wandb reads WANDB_PROJECT",
    "rl": "objective",
    "kl_coef": "beta",
    "rpo_alpha": OWN_LOSS,
    "cpo_alpha": OWN_LOSS,
    "simpo_gamma": OWN_LOSS,
    "gamma": OWN_LOSS,
}
"""Of transformers 4, of trainers that TRL had, and of axolotl and LLaMA-Factory."""

ALIKE = 0.65
"""Least likeness of a name that is taken for a slip: hundreds of settings are near to anything."""


def instead(name: str, counterparts: Mapping[str, str], known: Iterable[str]) -> str:
    """Return what to write in place of a name that is not known, as the end of a message.

    Args:
        name: the name that came.
        counterparts: by a foreign name, or by a pattern of names.
        known: the names that could be meant where there is no counterpart.

    >>> instead("vllm_mode", OF_SETTINGS, [])
    '; here: none: samples come from model.generate (docs/rounds.md)'
    >>> instead("modell", OF_SETTINGS, ["model", "beta"])
    '; did you mean model?'
    """
    for foreign, here in counterparts.items():
        if fnmatchcase(name, foreign):
            return f"; here: {here}"
    return nearest(name, known, ALIKE)


def refuse_foreign(where: str, given: Iterable[str], counterparts: Mapping[str, str], known: Iterable[str]) -> None:
    """Raise TypeError if an argument was given that is not known."""
    for name in given:
        raise TypeError(f"{where}: {name} is not an argument{instead(name, counterparts, known)}")
