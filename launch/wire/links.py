"""What a worker has counted of its links, as JSON values in its reports."""

from typing import Any

import numpy as np

import rps_jax as rps


def encode(state: rps.TrainState) -> list[int] | None:
    """Returns the counts in a worker's state, arrays `[1, ...]`; None where nothing is counted."""
    return np.asarray(state.links.packed)[0].tolist() if state.links else None


def decode(values: Any, num_workers: int) -> rps.LinkCounts:
    """Returns the counts again.

    Raises:
        ValueError: They are no counts of a run of so many workers.
    """
    packed, like = np.array(values), rps.LinkCounts.zero(num_workers).packed
    if packed.shape != like.shape or packed.dtype.kind not in "iu" or packed.min() < 0:
        raise ValueError(f"links: expected {like.size} counts")
    return rps.LinkCounts(packed)
