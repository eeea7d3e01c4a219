"""Rounding of the values in messages, by which no small step is lost.

The average of rounded models is rounded again when it is sent back, which takes away what fewer
than half of the workers have moved by: where all move by less than a spacing of the rounded numbers
in many steps, nothing would ever be learnt. So all add the same dither before they round, and take
it off the average: subtractive dither, Schuchman, "Dither Signals and Their Effect on Quantization
Noise", IEEE Transactions on Communication Technology 12(4), 1964. Uniform over a period of the
rounding, it makes the mean of the models move as it would without rounding, on average over the
exchanges. That period is two spacings, as ties are rounded to the even number.

A worker whose own message says the same as the average keeps its model. So models that are equal
stay what they are; and the mean, which rounding moves at random, is moved half as far.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rps_jax.keys import coarse_symmetric


def rounded(tree: Any, dtype: Any) -> Any:
    """Returns a tree whose wider floating leaves are rounded to a dtype."""
    # The barrier keeps XLA from leaving the rounding out, as it may on GPUs. One a leaf, as JAX
    # takes all that pass one for varying alike.
    return jax.tree.map(
        lambda x: (
            jax.lax.optimization_barrier(jnp.asarray(x, dtype))
            if _is_wider(x, dtype)
            else jnp.asarray(x)
        ),
        tree,
    )


def with_dither(tree: Any, dtype: Any, key: jax.Array) -> Any:
    """Returns a tree of which `rounded` loses nothing on average.

    Args:
        tree: a pytree of numbers; what is not rounded is returned as it is.
        dtype: what they will be rounded to.
        key: the same on every worker, and another in every exchange.
    """
    return _moved(tree, dtype, key, 1)


def without_dither(tree: Any, dtype: Any, key: jax.Array) -> Any:
    """Returns averages of what was rounded with dither, in the dtypes of before, without it."""
    return _moved(tree, dtype, key, -1)


def _moved(tree: Any, dtype: Any, key: jax.Array, sign: int) -> Any:
    leaves, structure = jax.tree.flatten(tree)
    moved = [
        x + sign * _dither(jnp.asarray(x), dtype, jax.random.fold_in(key, leaf))
        if _is_wider(x, dtype)
        else x
        for leaf, x in enumerate(leaves)
    ]
    return jax.tree.unflatten(structure, moved)


def _is_wider(x: Any, dtype: Any) -> bool:
    own = jnp.result_type(x)
    return jnp.issubdtype(own, jnp.floating) and own.itemsize > jnp.dtype(dtype).itemsize


def _dither(x: jax.Array, dtype: Any, key: jax.Array) -> jax.Array:
    return coarse_symmetric(key, x.shape).astype(x.dtype) * _spacing(x, dtype)


def _spacing(x: jax.Array, dtype: Any) -> jax.Array:
    """Returns how far apart the numbers of a dtype are where each number lies."""
    wide, narrow = jnp.finfo(x.dtype), jnp.finfo(dtype)
    # The bits of the exponent alone are the power of two below a number: frexp takes far longer.
    exponent = np.array(((1 << wide.nexp) - 1) << wide.nmant, f"uint{wide.bits}")
    bits = jax.lax.bitcast_convert_type(x, exponent.dtype)
    power = jax.lax.bitcast_convert_type(bits & exponent, x.dtype)
    power = jnp.clip(power, jnp.asarray(narrow.tiny, x.dtype), jnp.asarray(narrow.max, x.dtype))
    return power * jnp.asarray(narrow.eps, x.dtype)
