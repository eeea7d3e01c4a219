"""What a worker has counted of its links, as JSON values in its reports."""

from typing import Any

import numpy as np

import rps_jax as rps


def encode(state: rps.TrainState) -> dict[str, Any] | None:
    """Returns the counts in a worker's state, arrays `[1, ...]`; None where nothing is counted."""
    if not state.links:
        return None
    return {name: np.asarray(rows)[0].tolist() for name, rows in state.links._asdict().items()}


def decode(values: dict[str, Any], num_workers: int) -> rps.LinkCounts:
    """Returns the counts again, NumPy arrays.

    Raises:
        KeyError, TypeError, ValueError: They are no counts of a run of so many workers.
    """
    found: dict[str, Any] = {}
    for name, like in rps.LinkCounts.zero(num_workers)._asdict().items():
        rows = np.array(values[name])
        if rows.shape != like.shape or not np.issubdtype(rows.dtype, np.integer) or rows.min() < 0:
            raise ValueError(f"{name}: expected counts of shape {like.shape}")
        found[name] = rows
    return rps.LinkCounts(**found)
