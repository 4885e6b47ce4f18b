"""Use of trained models: conversation, and a LoRA adapter merged into its base model."""
