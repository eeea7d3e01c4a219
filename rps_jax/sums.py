"""Means as sums that lose nothing on the way: wide floats, and integers in two halves."""

import jax
import jax.numpy as jnp


def summands(values: jax.Array) -> jax.Array:
    """Returns what is to be summed in place of values, to have their mean by `mean_of_sum`.

    Args:
        values: `[...]`, floating, complex or integer.

    Returns:
        `[1, ...]` in at least 32 bits; of integers `[2, ...]`, the upper halves of their bits and
        the lower ones, whose sums do not overflow.
    """
    integer = jnp.issubdtype(values.dtype, jnp.integer)
    if values.dtype.itemsize < 4:
        values = values.astype(jnp.int32 if integer else jnp.float32)
    if not integer:
        return values[None]
    half = 4 * values.dtype.itemsize
    return jnp.stack([values >> half, values & ((1 << half) - 1)])


def mean_of_sum(total: jax.Array, count: jax.Array | int, dtype: jnp.dtype) -> jax.Array:
    """Returns the mean of values whose `summands` were summed.

    Args:
        total: the sum over all workers' `summands`.
        count: how many were summed, at most 2^14; broadcasts against `[...]`.
        dtype: of the values.

    Returns:
        `[...]` of `dtype`; integers are rounded to the nearest.
    """
    count = jnp.asarray(count, total.dtype)
    if not jnp.issubdtype(dtype, jnp.integer):
        return (total[0] / count).astype(dtype)
    upper, lower = total
    half = 4 * total.dtype.itemsize
    mean = ((upper // count) << half) + (((upper % count) << half) + lower + count // 2) // count
    return mean.astype(dtype)
