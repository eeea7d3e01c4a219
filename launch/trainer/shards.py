"""A split of the data, dealt to the workers and put on their devices."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from data import stack_shards
from launch.trainer.network import Network

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


def deal(network: Network, arrays: dict[str, np.ndarray], parts: Sequence[np.ndarray]) -> Shards:
    """Gives each worker its examples; a process reads those of its own workers only.

    Args:
        network: Where the workers are.
        arrays: Arrays `[N, ...]` of a split.
        parts: The indices of each worker's examples.
    """
    sizes = [len(part) for part in parts]
    batches = -(-max(sizes) // _EVALUATION_BATCH)
    batch = -(-max(sizes) // batches)
    mine = [parts[worker] for worker in network.workers]
    return Shards(network.mesh.put(stack_shards(arrays, mine, batches * batch)), batch, sizes)
