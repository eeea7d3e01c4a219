"""Models as bytes, as workers send them to the coordinator."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

import rps_jax as rps
from launch.trainer.setup import Setup


def encode(state: rps.TrainState) -> bytes:
    """Returns the params and the model state of a worker's state, arrays `[1, ...]`."""
    leaves = jax.tree.leaves((state.params, state.model_state))
    return b"".join(np.asarray(leaf).tobytes() for leaf in leaves)


def model_bytes(setup: Setup) -> int:
    """Returns the length of what `encode` makes of the models of a run."""
    leaves = jax.tree.leaves((setup.initial.params, setup.initial.model_state))
    return sum(leaf.nbytes // leaf.shape[0] for leaf in leaves)


def check_model(setup: Setup, content: bytes) -> None:
    """Raises `ValueError` for bytes that are no model of the run."""
    if len(content) != (expected := model_bytes(setup)):
        raise ValueError(f"a model of {len(content)} bytes: expected {expected}")


def models_of(setup: Setup, encoded: Sequence[bytes]) -> Any:
    """Returns (params, model_state) of several workers, arrays `[len(encoded), ...]`.

    Args:
        setup: Of the run.
        encoded: Of each worker, checked.
    """
    leaves, structure = jax.tree.flatten((setup.initial.params, setup.initial.model_state))
    stacked, start = [], 0
    for leaf in leaves:
        shape, dtype = leaf.shape[1:], np.dtype(leaf.dtype)
        count = int(np.prod(shape))
        rows = [np.frombuffer(content, dtype, count, start) for content in encoded]
        stacked.append(np.stack(rows).reshape(len(encoded), *shape))
        start += count * dtype.itemsize
    return jax.tree.unflatten(structure, stacked)
