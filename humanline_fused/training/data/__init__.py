"""Records to token ids to batches: sources, checks, tokenisation, padding, and the plan of the steps."""
