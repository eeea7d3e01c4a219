"""What one watches while workers train: how far apart they are, and how much arrives."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rps_jax.averaging import all_reduce
from rps_jax.axis import AxisName, axis_names, axis_size
from rps_jax.channel import Delivery, check_delivery


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
        params: this worker's pytree x_i.
        axis_name: the worker axis, or a tuple of axes.
    """
    axis_size(axis_name)

    def squared_distance(leaf: Any) -> jax.Array:
        wide = jnp.asarray(leaf) * jnp.float32(1)
        deviation = wide - jax.lax.pmean(wide, axis_names(axis_name))
        return jnp.sum(jnp.abs(deviation) ** 2)

    total = sum(map(squared_distance, jax.tree.leaves(params)), start=jnp.float32(0))
    return jnp.sqrt(jax.lax.pmean(total, axis_names(axis_name)))


def delivered_fraction(delivery: Delivery, axis_name: AxisName) -> DeliveredFraction:
    """Returns the share of messages that arrived in each phase, the same on every worker.

    Args:
        delivery: this worker's view of the exchange.
        axis_name: the worker axis, or a tuple of axes.
    """
    num_workers = axis_size(axis_name)
    delivery = check_delivery(delivery, num_workers)
    # Counted in integers, so that the order of summation does not show; one small all-reduce.
    incoming = jnp.stack([delivery.received, delivery.gathered]).reshape(2, -1)
    packets = incoming.shape[1] // num_workers
    arrived = jax.lax.psum(incoming.sum(1) - packets, axis_names(axis_name))
    links = num_workers * (num_workers - 1)
    fraction = arrived / (links * packets) if links else jnp.ones_like(arrived, jnp.float32)
    return DeliveredFraction(reduce_scatter=fraction[0], all_gather=fraction[1])
