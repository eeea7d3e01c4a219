"""From arrays and a partition to batches: shards on the host, order and batches on the device."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

Shard = dict[str, jax.Array]


def stack_shards(
    arrays: dict[str, np.ndarray],
    parts: Sequence[np.ndarray],
    capacity: int | None = None,
) -> dict[str, np.ndarray]:
    """Gathers each worker's examples, padded with zeros to one size.

    A process that holds only some of the workers passes their parts and the common capacity;
    from memory-mapped arrays it then reads only their examples.

    Args:
        arrays: Arrays `[N, ...]`.
        parts: For each of W workers, the indices of its examples.
        capacity: Rows of every shard; by default the size of the largest part.

    Returns:
        The arrays as `[W, capacity, ...]`, and "weight" (float32 `[W, capacity]`): 1 for an
        example, 0 for padding.

    Raises:
        ValueError: A part does not fit into `capacity`, or `arrays` has a "weight" already.
    """
    if "weight" in arrays:
        raise ValueError("arrays: found the key 'weight', expected it to be free")
    largest = max(len(part) for part in parts)
    if capacity is None:
        capacity = largest
    elif capacity < largest:
        raise ValueError(f"capacity={capacity}: expected at least {largest}, the largest part")
    stacked = {
        key: np.zeros((len(parts), capacity, *array.shape[1:]), array.dtype)
        for key, array in arrays.items()
    }
    weight = np.zeros((len(parts), capacity), np.float32)
    for worker, part in enumerate(parts):
        for key, array in arrays.items():
            stacked[key][worker, : len(part)] = array[part]
        weight[worker, : len(part)] = 1
    return {**stacked, "weight": weight}


def epoch_order(key: jax.Array, weight: jax.Array) -> jax.Array:
    """Returns the order of one epoch: the examples in uniformly random order, padding last.

    Args:
        key: A key of this worker and epoch alone. With `fold_in(worker_key, epoch)`, the place
            in the data is (seed, epoch, step), and nothing else needs a checkpoint.
        weight: The shard's "weight", `[capacity]`.

    Returns:
        Row numbers of the shard, int32 `[capacity]`.
    """
    shuffled = jax.random.permutation(key, weight.shape[0])
    padding_last = jnp.argsort(weight[shuffled] == 0, stable=True)
    return shuffled[padding_last].astype(jnp.int32)


def take(shard: Shard, order: jax.Array, start: jax.Array | int, batch_size: int) -> Shard:
    """Returns rows `order[start : start + batch_size]` of every array of a shard.

    Args:
        shard: Arrays `[capacity, ...]`, with "weight".
        order: From `epoch_order`.
        start: Place in the epoch; may be traced.
        batch_size: Rows of the batch. Those past the end of the epoch repeat its last row, with
            "weight" 0.

    Returns:
        Arrays `[batch_size, ...]`.
    """
    place = start + jnp.arange(batch_size)
    rows = jnp.take(order, place, mode="clip")
    batch = {key: jnp.take(array, rows, axis=0, mode="clip") for key, array in shard.items()}
    past_end = place >= order.shape[0]
    return {**batch, "weight": jnp.where(past_end, 0, batch["weight"])}
