"""Reduce-scatter and all-gather between devices, of blocks `[W, ...]` of all W workers.

A device has the blocks of its own workers: of `[W, ...]`, `[workers of the device, ...]`.
"""

import jax

from rps_jax.axis import AxisName, axis_sizes, device_axes


def reduce_scatter(blocks: jax.Array, axis_name: AxisName) -> jax.Array:
    """Sums over the devices, and leaves each its own blocks.

    Args:
        blocks: `[K, W, ...]`, of one device: the sum over its workers.
        axis_name: the worker axis, or a tuple of axes, outermost first. For each one of devices,
            innermost first, there is one collective.

    Returns:
        `[K, workers of the device, ...]`.
    """
    scattered = blocks.reshape(blocks.shape[:1] + axis_sizes(axis_name) + blocks.shape[2:])
    for name, place in reversed(device_axes(axis_name).items()):
        scattered = _sum_scatter_axis(scattered, name, 1 + place)
    return scattered.reshape(blocks.shape[0], -1, *blocks.shape[2:])


def own_blocks(blocks: jax.Array, axis_name: AxisName) -> jax.Array:
    """Returns what is a device's own of blocks that all have."""
    own = blocks.reshape(axis_sizes(axis_name) + blocks.shape[1:])
    for name, place in device_axes(axis_name).items():
        own = jax.lax.dynamic_slice_in_dim(own, jax.lax.axis_index(name), 1, place)
    return own.reshape(-1, *blocks.shape[1:])


def all_gather(blocks: jax.Array, axis_name: AxisName) -> jax.Array:
    """Gathers every device's own blocks: the reverse of `reduce_scatter`, without its K."""
    places = device_axes(axis_name)
    own = [1 if i in places.values() else size for i, size in enumerate(axis_sizes(axis_name))]
    gathered = blocks.reshape(*own, *blocks.shape[1:])
    for name, place in places.items():
        gathered = jax.lax.all_gather(gathered, name, axis=place, tiled=True)
    return gathered.reshape(-1, *blocks.shape[1:])


def _sum_scatter_axis(blocks: jax.Array, name: str, dimension: int) -> jax.Array:
    """Sums over one axis, and leaves each of its members one row of a dimension."""

    def scatter_sum(blocks: jax.Array) -> jax.Array:
        return jax.lax.psum_scatter(blocks, name, scatter_dimension=dimension, tiled=True)

    def exchange_and_sum(blocks: jax.Array) -> jax.Array:
        from_all = jax.lax.all_to_all(blocks, name, dimension, dimension, tiled=True)
        return from_all.sum(dimension, keepdims=True)

    if jax.process_count() == 1:
        return scatter_sum(blocks)
    # Between processes, CPUs have their collectives from Gloo, whose reduce-scatter returns wrong
    # sums of large chunks now and then, without a word (jax issue 40830).
    return jax.lax.platform_dependent(blocks, cpu=exchange_and_sum, default=scatter_sum)
