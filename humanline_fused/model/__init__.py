"""Computes the loss inside a transformers model's forward, without logits."""
