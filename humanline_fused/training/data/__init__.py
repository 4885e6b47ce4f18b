"""Data pipeline: sources, record checks, tokenisation, padding, and the plan of the steps."""
