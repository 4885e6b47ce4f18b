"""The theory of humanline: perceived probabilities and humanline sampling. Pure tensors."""
