"""What one watches while workers train: how far apart they are, and how much arrives."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rps_jax.averaging import all_reduce, check_leaves
from rps_jax.axis import AxisName, axis_names, axis_size
from rps_jax.blocks import to_blocks
from rps_jax.delivery import Delivery, in_packets, with_own


class DeliveredFraction(NamedTuple):
    """The share of an exchange's messages (or packets) that arrived, over all links.

    A worker's messages to itself do not count; of a single worker, both are 1.

    Attributes:
        reduce_scatter: float32 scalar in [0, 1].
        all_gather: float32 scalar in [0, 1].
    """

    reduce_scatter: jax.Array
    all_gather: jax.Array


def mean_model(params: Any, axis_name: AxisName) -> Any:
    """Returns the mean of the workers' models, the quantity that converges and is evaluated.

    Args:
        params: this worker's pytree.
        axis_name: the worker axis, or a tuple of axes.
    """
    return all_reduce(params, axis_name)


def consensus_distance(params: Any, axis_name: AxisName) -> jax.Array:
    """Returns sqrt(mean_i ||x_i - mean x||^2), float32 scalar, the same on every worker.

    It takes one all-reduce of the whole model: log it now and then rather than at every step.

    Args:
        params: this worker's pytree x_i. Where a worker is cut over devices of another axis, it is
            of the local shards alone: sqrt(psum(d**2, "fsdp")) of their distances d is that of the
            model, if leaves that every device has whole are counted on one alone.
        axis_name: the worker axis, or a tuple of axes.
    """
    distance = distance_from_mean(params, axis_name)
    return jnp.sqrt(jax.lax.pmean(distance**2, axis_names(axis_name)))


def distance_from_mean(params: Any, axis_name: AxisName) -> jax.Array:
    """Returns ||x_i - mean x||, float32 scalar, of this worker; see `consensus_distance`.

    Args:
        params: this worker's pytree x_i.
        axis_name: the worker axis, or a tuple of axes.
    """
    axis_size(axis_name)  # Raises where the axis is not bound.
    check_leaves(params)

    def squared_distance(leaf: Any) -> jax.Array:
        leaf = jnp.asarray(leaf)
        narrow = leaf.dtype.itemsize < 4 or not jnp.issubdtype(leaf.dtype, jnp.inexact)
        wide = leaf.astype(jnp.float32) if narrow else leaf
        deviation = wide - jax.lax.pmean(wide, axis_names(axis_name))
        return jnp.sum(jnp.abs(deviation) ** 2).astype(jnp.float32)

    # A sum over workers of nothing ends XLA on CPUs (jax 0.11.2).
    leaves = [leaf for leaf in jax.tree.leaves(params) if jnp.size(leaf)]
    total = sum(map(squared_distance, leaves), start=jnp.float32(0))
    return jnp.sqrt(total)


def delivered_fraction(delivery: Delivery, axis_name: AxisName) -> DeliveredFraction:
    """Returns the share of messages that arrived in each phase, the same on every worker.

    Args:
        delivery: this worker's view of the exchange.
        axis_name: the worker axis, or a tuple of axes.
    """
    delivery = in_packets(delivery, axis_size(axis_name))
    me = jax.lax.axis_index(axis_names(axis_name))
    arrived, links = count_incoming(with_own(delivery, me))
    arrived, workers = jax.lax.psum((arrived, 1), axis_names(axis_name))
    return fraction_of(arrived, workers * links)


def exchange_bytes(tree: Any, num_workers: int, packets: int = 1) -> int:
    """Returns how many bytes of payload a worker sends in one exchange.

    In the reduce-scatter a block to each other worker, in the all-gather its average to each. A
    reliable all-reduce over a ring sends as many.

    Args:
        tree: what is averaged: a pytree of arrays, or of their shapes and dtypes.
        num_workers: how many workers take part.
        packets: into how many packets a message is cut, which pads it.
    """
    blocks = jax.eval_shape(lambda tree: to_blocks(tree, num_workers, packets)[0], tree)
    of_block = sum(block.size // num_workers * block.dtype.itemsize for block in blocks)
    return 2 * (num_workers - 1) * of_block


def count_incoming(delivery: Delivery) -> tuple[jax.Array, int]:
    """Counts what arrived at this worker from the others.

    Counts are integers, so that the order in which those of all workers are summed does not show.

    Args:
        delivery: this worker's view of the exchange, in packets, its own among what arrived.

    Returns:
        How many messages (or packets) arrived, int32 `[2]`, by phase; and how many there were.
    """
    num_workers, packets = delivery.received.shape
    incoming = jnp.stack([delivery.received, delivery.gathered])
    return incoming.sum((1, 2), dtype=jnp.int32) - packets, (num_workers - 1) * packets


def fraction_of(
    arrived: jax.Array, sent: jax.Array | int, if_none: jax.Array | float = 1.0
) -> DeliveredFraction:
    """Returns the share of messages that arrived.

    Args:
        arrived: the counts of `count_incoming`, summed over workers.
        sent: how many messages there were for all of them, in each phase.
        if_none: what is returned where there were none.
    """
    share = arrived.astype(jnp.float32) / jnp.maximum(sent, 1).astype(jnp.float32)
    fraction = jnp.where(jnp.asarray(sent) > 0, share, jnp.float32(if_none))
    return DeliveredFraction(reduce_scatter=fraction[0], all_gather=fraction[1])
