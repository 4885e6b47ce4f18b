"""``python -m benchmarks paper``: the paper's claims at a scale where every seed can be repeated."""
