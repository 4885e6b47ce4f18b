"""The part of a dataset that is held out for evaluation: whole prompts, in an order that no seed changes."""

import numpy as np

from humanline_fused.training.data.store import StoredExamples


def held_out_places(prompts: np.ndarray, share: float) -> np.ndarray:
    """Return the places of examples to hold out: all examples of as many prompts as fit into the share.

    The prompts are taken in the order of their hashes, so the same data are held out whatever the seed, the number of
    processes and the order of the rows. A prompt with more examples than are missing is passed over.

    Args:
        prompts: a hash of each example's prompt, [examples].
        share: of the examples, from 0 to 1.

    >>> held_out_places(np.array([7, 3, 7, 3, 9, 3]), share=0.5).tolist()
    [1, 3, 5]
    """
    missing, taken = round(share * len(prompts)), []
    for prompt, number in zip(*np.unique(prompts, return_counts=True), strict=True):
        if number <= missing:
            taken.append(prompt)
            missing -= number
        if not missing:
            break
    return np.flatnonzero(np.isin(prompts, taken))


def split(examples: StoredExamples, share: float) -> tuple[StoredExamples, StoredExamples]:
    """Return the examples to train on and those that are held out, each in their order; either may be empty."""
    places = held_out_places(examples.prompts, share)
    return examples.subset(np.setdiff1d(np.arange(len(examples)), places)), examples.subset(places)


def trained_on(examples: StoredExamples, share: float | None) -> StoredExamples:
    """Return the examples without those that :func:`split` holds out; all of them if ``share`` is None."""
    return split(examples, share)[0] if share else examples
