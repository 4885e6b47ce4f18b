"""A small model from nothing to humanline-trained, on a CPU and without a network: ``humanline demo``."""
