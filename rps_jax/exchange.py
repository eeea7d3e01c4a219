"""The masked reduce-scatter and all-gather over a named axis: one exchange of one worker.

Rows are in the order of servers: row w of a worker's blocks is the block that worker w serves.
Dimensions: W workers, P packets of a block, E elements of a packet.
"""

import jax
import jax.numpy as jnp

from rps_jax.axis import AxisName, axis_names, axis_sizes


def masked_reduce_scatter(
    blocks_WxPxE: jax.Array, sent_WxP: jax.Array, received_WxP: jax.Array, axis_name: AxisName
) -> jax.Array:
    """Averages, at its server, what arrived of each block, dividing by the number that arrived.

    Args:
      blocks_WxPxE: this worker's blocks, a row a server.
      sent_WxP: bool; which of them reach their servers.
      received_WxP: bool; which workers' packets reach this worker, the server of one block.
      axis_name: the worker axis, or a tuple of axes, outermost first.

    Returns:
      `[P, E]`: the average of the block that this worker serves. Floats of 16 bits or fewer are
      summed in float32 and rounded once; integers are rounded to the nearest.
    """
    dtype = blocks_WxPxE.dtype
    # Select, never multiply by the mask: a NaN that was dropped must not reach the sum.
    arriving = jnp.where(sent_WxP[:, :, None], blocks_WxPxE, 0).astype(sum_dtype(dtype))
    total_PxE = _sum_scatter(arriving, axis_name)
    return mean_of_sum(total_PxE, received_WxP.sum(0)[:, None], dtype)


def masked_all_gather(
    average_PxE: jax.Array, otherwise_WxPxE: jax.Array, gathered_WxP: jax.Array, axis_name: AxisName
) -> jax.Array:
    """Gathers every server's average, and puts `otherwise` where it did not arrive.

    Args:
      average_PxE: the average that this worker serves.
      otherwise_WxPxE: what this worker falls back to.
      gathered_WxP: bool; which servers' packets reach this worker.
      axis_name: the worker axis, or a tuple of axes, outermost first.

    Returns:
      `[W, P, E]`, a row a server.
    """
    averages_WxPxE = _concatenate(average_PxE, axis_name).reshape(otherwise_WxPxE.shape)
    return jnp.where(gathered_WxP[:, :, None], averages_WxPxE, otherwise_WxPxE)


def _sum_scatter(rows: jax.Array, axis_name: AxisName) -> jax.Array:
    """Sums `[W, ...]` over the workers and leaves each its own row `[...]`.

    One axis at a time, innermost first: on a device's own workers the sum is local, so that what
    travels between devices is summed already, and the whole is one reduce-scatter.
    """
    names, sizes = axis_names(axis_name), axis_sizes(axis_name)
    scattered = rows.reshape(sizes + rows.shape[1:])
    for dimension, name in reversed(list(enumerate(names))):
        scattered = jax.lax.psum_scatter(scattered, name, scatter_dimension=dimension, tiled=True)
    return scattered.reshape(rows.shape[1:])


def _concatenate(row: jax.Array, axis_name: AxisName) -> jax.Array:
    """Gathers every worker's `[...]` into `sizes + [...]`: the reverse of `_sum_scatter`."""
    names = axis_names(axis_name)
    gathered = row.reshape((1,) * len(names) + row.shape)
    for dimension, name in enumerate(names):
        gathered = jax.lax.all_gather(gathered, name, axis=dimension, tiled=True)
    return gathered


def sum_dtype(dtype: jnp.dtype) -> jnp.dtype:
    """Returns the dtype in which values of `dtype` are summed: at least 32 bits."""
    if dtype.itemsize >= 4:
        return dtype
    return jnp.dtype(jnp.int32 if jnp.issubdtype(dtype, jnp.integer) else jnp.float32)


def mean_of_sum(total: jax.Array, count: jax.Array | int, dtype: jnp.dtype) -> jax.Array:
    """Divides a sum by how many it sums, into `dtype`; integers are rounded to the nearest."""
    count = jnp.asarray(count, total.dtype)
    mean = (total + count // 2) // count if jnp.issubdtype(dtype, jnp.integer) else total / count
    return mean.astype(dtype)
