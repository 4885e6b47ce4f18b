"""``humanline demo``: train a small model from scratch with humanline, on a CPU without a network."""
