"""The masked reduce-scatter and all-gather over a named axis: one exchange of one worker.

Rows are blocks: row w is summed on worker w's device. That is a matter of placement alone; whose
losses a block suffers, those of its server, is in the masks.
Dimensions: W workers, and as many blocks; P packets of a block; E elements of a packet.
"""

import jax
import jax.numpy as jnp

from rps_jax.axis import AxisName, axis_names, axis_sizes
from rps_jax.sums import mean_of_sum, summands


def masked_reduce_scatter(
    blocks_WxPxE: jax.Array, sent_WxP: jax.Array, axis_name: AxisName
) -> jax.Array:
    """Averages what reaches each block's server, dividing by the number that does.

    Args:
        blocks_WxPxE: this worker's blocks.
        sent_WxP: bool; which of its packets reach their servers.
        axis_name: the worker axis, or a tuple of axes, outermost first.

    Returns:
        `[P, E]`: the average of the block whose number is this worker's. Floats of 16 bits or fewer
        are summed in float32 and rounded once; integers are rounded to the nearest.
    """
    # A one travels with every packet, so that the sum arrives with the number of its terms.
    with_one = jnp.pad(summands(blocks_WxPxE), ((0, 0), (0, 0), (0, 1)), constant_values=1)
    # Select, never multiply by the mask: a NaN that was dropped must not reach the sum.
    arriving = jnp.where(sent_WxP[:, :, None], with_one, 0)
    total_PxE1 = _sum_scatter(arriving, axis_name)
    return mean_of_sum(total_PxE1[:, :-1], total_PxE1[:, -1:], blocks_WxPxE.dtype)


def masked_all_gather(
    average_PxE: jax.Array, otherwise_WxPxE: jax.Array, gathered_WxP: jax.Array, axis_name: AxisName
) -> jax.Array:
    """Gathers every block's average, and puts `otherwise` where it did not arrive.

    Args:
        average_PxE: the average of the block whose number is this worker's.
        otherwise_WxPxE: what this worker falls back to.
        gathered_WxP: bool; which packets reach this worker from their servers.
        axis_name: the worker axis, or a tuple of axes, outermost first.

    Returns:
        `[W, P, E]`, a row a block.
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
