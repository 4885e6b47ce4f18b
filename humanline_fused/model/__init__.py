"""Changes inside a transformers model's forward: the loss instead of the logits."""
