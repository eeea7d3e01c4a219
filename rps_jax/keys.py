"""Keys whose draws do not depend on the user's configuration of JAX.

Always threefry: the draws of the hardware generators change under vmap, and with them the losses
would depend on how the workers are placed.
"""

import jax

_IMPLEMENTATION = "threefry2x32"


def key_data(seed: int | jax.Array) -> jax.Array:
    """Returns the raw key of a seed, uint32 `[2]`, which any checkpoint format can hold."""
    return jax.random.key_data(jax.random.key(seed, impl=_IMPLEMENTATION))


def portable(key: jax.Array) -> jax.Array:
    """Returns a threefry key for a key of any implementation, raw or typed."""
    return wrap_key(jax.random.key_data(key)[:2])


def wrap_key(data: jax.Array) -> jax.Array:
    """Returns the key of raw key data."""
    return jax.random.wrap_key_data(data, impl=_IMPLEMENTATION)
