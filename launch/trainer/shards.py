"""A split of the data, dealt to the workers and put on their devices."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from data import stack_shards
from rps_jax import WorkerMesh

_EVALUATION_BATCH = 64
"""Most examples that a worker evaluates at once."""


class Shards(NamedTuple):
    """A split of the data, a shard a worker.

    Attributes:
        arrays: On the devices, `[num_workers, capacity, ...]`, with "weight".
        batch: Rows of an evaluation batch; divides the capacity.
        sizes: How many examples each worker has.
    """

    arrays: dict[str, jax.Array]
    batch: int
    sizes: list[int]


def deal(mesh: WorkerMesh, arrays: dict[str, np.ndarray], parts: Sequence[np.ndarray]) -> Shards:
    """Gives each worker its examples; a process reads those of its own workers only.

    Args:
        mesh: Where the workers are.
        arrays: Arrays `[N, ...]` of a split.
        parts: The indices of each worker's examples.
    """
    sizes = [len(part) for part in parts]
    batches = -(-max(sizes) // _EVALUATION_BATCH)
    batch = -(-max(sizes) // batches)
    mine = [parts[worker] for worker in mesh.local_workers]
    return Shards(mesh.put(stack_shards(arrays, mine, batches * batch)), batch, sizes)
