"""Humanline DPO with a LoRA adapter. The reference is a second, frozen adapter on the same base weights."""

import argparse

from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from humanline_fused.training import HumanlineConfig, HumanlineTrainer

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", default="runs/examples/start")
parser.add_argument("--dataset", default="runs/examples/pairs.jsonl")
parser.add_argument("--output_dir", default="runs/examples/lora")
parser.add_argument("--max_steps", type=int, default=60)
options = parser.parse_args()

base = AutoModelForCausalLM.from_pretrained(options.model)
policy = get_peft_model(base, LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"))
policy.print_trainable_parameters()

config = HumanlineConfig(
    output_dir=options.output_dir,
    objective="dpo",
    reference="adapter",  # the default, "lookahead", works too and needs no second adapter
    sync_every=20,
    log_epsilon_P=-0.2,  # narrower than the paper's 1.5, so that the clamp binds in a run this short
    log_epsilon_R=0.2,
    max_length=32,
    per_device_train_batch_size=16,
    max_steps=options.max_steps,
    learning_rate=2e-4,
    logging_steps=5,
    save_strategy="no",
)
trainer = HumanlineTrainer(
    policy,  # pyright: ignore[reportArgumentType]
    args=config,
    train_dataset=options.dataset,
    processing_class=AutoTokenizer.from_pretrained(options.model),
)
trainer.train()
trainer.save_model()  # only the trained adapter
