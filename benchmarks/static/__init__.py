"""Every kernel cross-compiled, without a GPU: what its loops cost, and the share of a GPU's bandwidth that predicts."""
