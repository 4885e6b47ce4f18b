"""The losses and log-probs, case by case: who answers them, how exactly, how fast, and beside which ceiling."""
