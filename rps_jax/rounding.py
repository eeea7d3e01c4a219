"""Rounding of the values in messages, by which no small step is lost.

A worker that goes on with average(round(x)) + (x - round(x)) keeps what was rounded away of its own
model. But the average is rounded as well, when it is sent back: by itself that would take away
what fewer than half of the workers have moved by, and where all move by less than a spacing of the
rounded numbers in many steps, nothing would ever be learnt. So all add the same dither before they
round: subtractive dither, Schuchman, "Dither Signals and Their Effect on Quantization Noise", IEEE
Transactions on Communication Technology 12(4), 1964. Uniform over a period of the rounding, it
makes the mean of the models move as it would without rounding, on average over the exchanges. That
period is two spacings, as ties are rounded to the even number.
"""

from typing import Any

import jax
import jax.numpy as jnp

from rps_jax.keys import uniform


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


def dithered(tree: Any, dtype: Any, key: jax.Array) -> Any:
    """Returns a tree of which `rounded` loses nothing on average.

    Args:
        tree: a pytree of numbers; what is not rounded is returned as it is.
        dtype: what they will be rounded to.
        key: the same on every worker, and another in every exchange.
    """
    leaves, structure = jax.tree.flatten(tree)
    moved = [
        _dithered(jnp.asarray(x), dtype, jax.random.fold_in(key, leaf))
        if _is_wider(x, dtype)
        else x
        for leaf, x in enumerate(leaves)
    ]
    return jax.tree.unflatten(structure, moved)


def _is_wider(x: Any, dtype: Any) -> bool:
    own = jnp.result_type(x)
    return jnp.issubdtype(own, jnp.floating) and own.itemsize > jnp.dtype(dtype).itemsize


def _dithered(x: jax.Array, dtype: Any, key: jax.Array) -> jax.Array:
    dither = 2 * uniform(key, x.shape) - 1
    return x + dither.astype(x.dtype) * _spacing(x, dtype)


def _spacing(x: jax.Array, dtype: Any) -> jax.Array:
    """Returns how far apart the numbers of a dtype are where each number lies."""
    narrow = jnp.finfo(dtype)
    exponent = jnp.where(x == 0, narrow.minexp, jnp.frexp(x)[1] - 1)
    return jnp.ldexp(jnp.asarray(narrow.eps, x.dtype), jnp.maximum(exponent, narrow.minexp))
