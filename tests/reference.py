"""A slow, obvious NumPy twin of the exchange and the averaging rules: the oracle of the tests.

All workers at once and no collectives: every leaf has a leading axis of workers, as `jax.vmap` over
the workers would hold it. One coordinate is looked at after the other, so that each line can be
checked against the text of the algorithm.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from rps_jax.delivery import Delivery
from rps_jax.servers import RECEIVED, Server


def average_models(params: Any, delivery: Delivery, shift: int = 0) -> Any:
    """What `rps_jax.average_models` gives, for all workers at once.

    Args:
        params: pytree of arrays `[num_workers, ...]`.
        delivery: all workers' views, fields `[num_workers, num_workers]` or
            `[num_workers, num_workers, packets]`, the first axis the worker whose view it is.
        shift: added to `delivery.shift`: block j is served by worker (j + shift) mod num_workers.

    Returns:
        A pytree like `params`, of NumPy arrays.
    """
    return exchange(params, params, delivery, shift)


def average_gradients(grads: Any, delivery: Delivery, on_miss: str = "own", shift: int = 0) -> Any:
    """What `rps_jax.average_gradients` gives, for all workers at once; see `average_models`."""
    missed = grads if on_miss == "own" else jax.tree.map(np.zeros_like, grads)
    return exchange(grads, missed, delivery, shift)


def all_reduce(params: Any) -> Any:
    """What `rps_jax.all_reduce` gives, for all workers at once."""
    return jax.tree.map(
        lambda leaf: np.broadcast_to(_mean(np.asarray(leaf)), np.shape(leaf)).copy(), params
    )


def exchange(
    tree: Any, otherwise: Any, delivery: Delivery, shift: int = 0, server: Server = RECEIVED
) -> Any:
    """What the rules have in common: averages of `tree`, and `otherwise` where they are missed."""
    last = otherwise if server.last is None else server.last
    merge = {
        "received": lambda own, last, arrived, me: _mean(own[arrived]),
        "zero-filled": lambda own, last, arrived, me: np.where(arrived, own, 0).mean(),
        "unbiased": lambda own, last, arrived, me: np.where(
            np.arange(len(own)) == me, own, np.where(arrived, own / (1 - server.drop_rate), 0)
        ).mean(),
        "stale": lambda own, last, arrived, me: np.where(arrived, own, last).mean(),
    }

    def gather(own: Any, fallback: Any, old: Any, arrived: Any, gathered: Any, me: int) -> Any:
        name = "received" if np.issubdtype(own.dtype, np.integer) else server.name
        return np.where(gathered, merge[name](own, old, arrived, me), fallback)

    return _coordinate_by_coordinate(gather, delivery, shift, tree, otherwise, last)


def sent_or_last(tree: Any, last: Any, delivery: Delivery) -> Any:
    """What servers have of each worker: what arrived, and `last` of the rest."""

    def keep(own: Any, old: Any, arrived: Any, gathered: Any, me: int) -> Any:
        del gathered, me
        return np.where(arrived, own, old)

    return _coordinate_by_coordinate(keep, delivery, 0, tree, last)


def _coordinate_by_coordinate(
    combine: Any, delivery: Delivery, shift: int, tree: Any, *others: Any
) -> Any:
    """Computes each coordinate of a tree from those of it and of others like it.

    Args:
        combine: given the columns `[num_workers]` of each tree, whose messages arrived at the
            server of the coordinate's block, whom its average reached, and the server.
        delivery: all workers' views.
        shift: as of `average_models`.
        tree: pytree of arrays `[num_workers, ...]`.
        *others: more such.
    """
    if delivery.shift is not None:
        shift += int(np.ravel(delivery.shift)[0])  # The same on every worker.
    leaves, treedef = jax.tree.flatten(jax.tree.map(np.asarray, tree))
    more = [jax.tree.leaves(jax.tree.map(np.asarray, other)) for other in others]
    results: list[Any] = [leaf.copy() for leaf in leaves]
    for dtype in {leaf.dtype for leaf in leaves}:
        # The coordinates of one dtype stand end to end, in the order of the tree.
        members = [index for index, leaf in enumerate(leaves) if leaf.dtype == dtype]
        num_workers = leaves[members[0]].shape[0]
        columns = [_flat([each[index] for index in members]) for each in (leaves, *more)]
        result = _exchange_coordinates(combine, columns, delivery, shift)
        start = 0
        for index in members:
            size = leaves[index][0].size
            part = result[:, start : start + size]
            results[index] = part.reshape(num_workers, *leaves[index].shape[1:])
            start += size
    return jax.tree.unflatten(treedef, results)


def _exchange_coordinates(
    combine: Any, columns: list[np.ndarray], delivery: Delivery, shift: int
) -> np.ndarray:
    """Returns what becomes of arrays `[num_workers, coordinates]`."""
    num_workers, num_coordinates = columns[0].shape
    result = columns[0].copy()
    # Of each worker's view [worker, other], or [worker, other, packets]:
    arrived, gathered = (
        np.asarray(view).reshape(num_workers, num_workers, -1)
        for view in (delivery.sent, delivery.gathered)
    )
    myself = np.eye(num_workers, dtype=bool)[:, :, None]
    arrived, gathered = arrived | myself, gathered | myself
    packets = arrived.shape[2]
    packet_size = -(-num_coordinates // (num_workers * packets))
    for coordinate in range(num_coordinates):
        block, packet = divmod(coordinate // packet_size, packets)
        server = (block + shift) % num_workers
        of_workers = [column[:, coordinate] for column in columns]
        masks = arrived[:, server, packet], gathered[:, server, packet]
        result[:, coordinate] = combine(*of_workers, *masks, server)
    return result


def _mean(values: np.ndarray) -> Any:
    """The average over the first axis, in at least 32 bits; of integers the nearest integer."""
    if np.issubdtype(values.dtype, np.integer):
        count = len(values)
        return ((values.astype(np.int64).sum(0) + count // 2) // count).astype(values.dtype)
    wide = values.dtype if values.dtype.itemsize >= 4 else np.dtype(np.float32)
    return (values.astype(wide).sum(0) / wide.type(len(values))).astype(values.dtype)


def _flat(leaves: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([leaf.reshape(len(leaf), -1) for leaf in leaves], axis=1)


def outcomes(
    num_workers: int, drop_rate: float, gather_rate: float
) -> Iterator[tuple[float, int, tuple[bool, ...], tuple[bool, ...]]]:
    """Yields what may happen to one block: probability, server, who reaches it, whom it reaches."""
    n = num_workers
    for server in range(n):
        free = [bits for bits in itertools.product((True, False), repeat=n) if bits[server]]
        for arrived, gathered in itertools.product(free, free):
            probability = 1 / n
            for bits, rate in ((arrived, drop_rate), (gathered, gather_rate)):
                dropped = n - sum(bits)
                probability *= rate**dropped * (1 - rate) ** (n - 1 - dropped)
            yield probability, server, arrived, gathered
