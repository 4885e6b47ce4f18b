"""``python -m benchmarks``: where the operations stand. Imports everything; nothing imports it."""
