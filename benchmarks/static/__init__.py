"""Every kernel cross-compiled, without a GPU: the cost of its loops, and a predicted share of a GPU's bandwidth."""
