"""Package of the examples, so that ``reward: examples.sorting_reward:reward`` resolves from the repository's root."""
