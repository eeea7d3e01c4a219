"""Reduce-scatter and all-gather over a worker axis of one or several names."""

import jax

from rps_jax.axis import AxisName, axis_names, axis_sizes


def reduce_scatter(rows: jax.Array, axis_name: AxisName) -> jax.Array:
    """Sums `[W, ...]` over the workers and leaves each its own row `[...]`.

    One axis at a time, innermost first: on a device's own workers the sum is local, so that what
    travels between devices is summed already, and the whole is one collective.
    """
    names, sizes = axis_names(axis_name), axis_sizes(axis_name)
    scattered = rows.reshape(sizes + rows.shape[1:])
    for dimension, name in reversed(list(enumerate(names))):
        scattered = _sum_scatter_axis(scattered, name, dimension)
    return scattered.reshape(rows.shape[1:])


def _sum_scatter_axis(rows: jax.Array, name: str, dimension: int) -> jax.Array:
    """Sums over one axis, and leaves each of its members one row of a dimension."""

    def scatter_sum(rows: jax.Array) -> jax.Array:
        return jax.lax.psum_scatter(rows, name, scatter_dimension=dimension, tiled=True)

    def exchange_and_sum(rows: jax.Array) -> jax.Array:
        from_all = jax.lax.all_to_all(rows, name, dimension, dimension, tiled=True)
        return from_all.sum(dimension, keepdims=True)

    if jax.process_count() == 1:
        return scatter_sum(rows)
    # Between processes, CPUs have their collectives from Gloo, whose reduce-scatter returns wrong
    # sums of large chunks now and then, without a word (jax issue 40830).
    return jax.lax.platform_dependent(rows, cpu=exchange_and_sum, default=scatter_sum)


def all_gather(row: jax.Array, axis_name: AxisName) -> jax.Array:
    """Gathers every worker's `[...]` into `sizes + [...]`: the reverse of `reduce_scatter`."""
    names = axis_names(axis_name)
    gathered = row.reshape((1,) * len(names) + row.shape)
    for dimension, name in enumerate(names):
        gathered = jax.lax.all_gather(gathered, name, axis=dimension, tiled=True)
    return gathered
