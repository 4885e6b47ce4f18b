"""The policy's own samples, in rounds and evaluations: sampling, rewards, and conversion to examples."""
