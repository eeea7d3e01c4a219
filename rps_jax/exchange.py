"""The masked reduce-scatter and all-gather over a named axis: one exchange of one worker.

Rows are blocks: row w is summed on worker w's device. That is a matter of placement alone; whose
drops a block suffers, those of its server, is in the masks.
Dimensions: W workers, and as many blocks; P packets of a block; E elements of a packet.
"""

import jax
import jax.numpy as jnp

from rps_jax.axis import AxisName, axis_names, axis_sizes
from rps_jax.sums import mean_of_sum, summands


def count_arrivals(sent_WxP: jax.Array, axis_name: AxisName) -> jax.Array:
    """Returns how many workers reach the server of this worker's block, int32 `[P]`.

    Args:
        sent_WxP: bool; which of this worker's packets reach their servers, a row a block.
        axis_name: the worker axis, or a tuple of axes, outermost first.
    """
    # All rows to everybody: they are small, and all-reduces are exact wherever there are any.
    counts_WxP = jax.lax.psum(sent_WxP.astype(jnp.int32), axis_names(axis_name))
    return counts_WxP[jax.lax.axis_index(axis_names(axis_name))]


def masked_reduce_scatter(
    blocks_WxPxE: jax.Array,
    sent_WxP: jax.Array,
    count_P: jax.Array,
    axis_name: AxisName,
    *,
    weight_W: jax.Array | None = None,
    instead_WxPxE: jax.Array | None = None,
) -> jax.Array:
    """Sums what reaches each block's server, and divides it by a count.

    Args:
        blocks_WxPxE: this worker's blocks.
        sent_WxP: bool; which of its packets reach their servers.
        count_P: what the sum of the block of this worker's number is divided by: to average, how
            many workers' packets reach its server.
        axis_name: the worker axis, or a tuple of axes, outermost first.
        weight_W: float32; what each of this worker's blocks is multiplied by; None for 1.
        instead_WxPxE: what is summed in the place of what does not reach its server; None for 0.

    Returns:
        `[P, E]`: the average of the block whose number is this worker's. Floats of 16 bits or fewer
        are summed in float32 and rounded once; integers are rounded to the nearest.
    """
    # Select, never multiply by the mask: a NaN that was dropped must not reach the sum.
    terms = summands(blocks_WxPxE)
    if weight_W is not None:
        terms = terms * weight_W[:, None, None].astype(terms.dtype)
    instead = jnp.zeros((), terms.dtype) if instead_WxPxE is None else summands(instead_WxPxE)
    arriving = jnp.where(sent_WxP[:, :, None], terms, instead)
    total_PxE = _sum_scatter(arriving, axis_name)
    return mean_of_sum(total_PxE, count_P[:, None], blocks_WxPxE.dtype)


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
    travels between devices is summed already, and the whole is one collective.
    """
    names, sizes = axis_names(axis_name), axis_sizes(axis_name)
    scattered = rows.reshape(sizes + rows.shape[1:])
    for dimension, name in reversed(list(enumerate(names))):
        scattered = _sum_scatter_axis(scattered, name, dimension)
    return scattered.reshape(rows.shape[1:])


def _sum_scatter_axis(rows: jax.Array, name: str, dimension: int) -> jax.Array:
    """Sums over one axis, and leaves each of its members one row of a dimension."""

    def reduce_scatter(rows: jax.Array) -> jax.Array:
        return jax.lax.psum_scatter(rows, name, scatter_dimension=dimension, tiled=True)

    def exchange_and_sum(rows: jax.Array) -> jax.Array:
        from_all = jax.lax.all_to_all(rows, name, dimension, dimension, tiled=True)
        return from_all.sum(dimension, keepdims=True)

    if jax.process_count() == 1:
        return reduce_scatter(rows)
    # Between processes, CPUs have their collectives from Gloo, whose reduce-scatter returns wrong
    # sums of large chunks now and then, without a word (jax issue 40830).
    return jax.lax.platform_dependent(rows, cpu=exchange_and_sum, default=reduce_scatter)


def _concatenate(row: jax.Array, axis_name: AxisName) -> jax.Array:
    """Gathers every worker's `[...]` into `sizes + [...]`: the reverse of `_sum_scatter`."""
    names = axis_names(axis_name)
    gathered = row.reshape((1,) * len(names) + row.shape)
    for dimension, name in enumerate(names):
        gathered = jax.lax.all_gather(gathered, name, axis=dimension, tiled=True)
    return gathered
