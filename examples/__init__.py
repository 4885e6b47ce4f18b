"""Importable from the repository's root, so that ``reward: examples.sorting_reward:reward`` is the one beside this."""
