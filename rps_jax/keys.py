"""Random numbers that do not depend on the user's configuration of JAX.

Both ends of a message draw its fate by themselves, so a draw has to be the same number wherever and
however it is made. The draws of `jax.random` change with `jax_threefry_partitionable` and
`jax_default_prng_impl`, and those of the hardware generators under vmap. So everything here is made
of one operation that depends on none of them: `jax.random.fold_in` of a threefry key, one block of
the Threefry-2x32 hash (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011). In
JAX's default configuration the numbers are those of the functions of `jax.random` of the same name.

JAX lowers its hash to a loop on CPUs and to a custom call on GPUs. Written out as elementwise
operations it compiles faster, and hundreds of workers draw two to four times as fast; but XLA then
repeats the draws for every parameter that they mask, and an exchange took 17 times as long.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from rps_jax.checks import check_integer

_IMPLEMENTATION = "threefry2x32"


def key_data(seed: int | jax.Array) -> jax.Array:
    """Returns the raw key of a seed, uint32 `[2]`, which any checkpoint format can hold.

    Args:
        seed: an integer; its lowest 32 bits count. May be traced.

    Raises:
        ValueError: something else.
    """
    if not isinstance(seed, int):
        check_integer("seed", seed)
    low = np.uint32(seed & 0xFFFFFFFF) if isinstance(seed, int) else jnp.uint32(seed)
    return jnp.stack([jnp.uint32(0), low])


def portable(key: jax.Array) -> jax.Array:
    """Returns a threefry key for a key of any implementation, raw or typed."""
    return wrap_key(jax.random.key_data(key)[:2])


def wrap_key(data: jax.Array) -> jax.Array:
    """Returns the key of raw key data."""
    return jax.random.wrap_key_data(data, impl=_IMPLEMENTATION)


def split(key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns two keys that are independent of each other."""
    return jax.random.fold_in(key, 0), jax.random.fold_in(key, 1)


def uniform(key: jax.Array, shape: tuple[int, ...] = ()) -> jax.Array:
    """Returns float32 numbers, uniform over [0, 1)."""
    # 23 random bits as the fraction of a float in [1, 2).
    floats = jax.lax.bitcast_convert_type(
        (_bits(key, shape) >> 9) | jnp.uint32(0x3F800000), jnp.float32
    )
    return floats - jnp.float32(1)


def randint(key: jax.Array, bound: int) -> jax.Array:
    """Returns an int32 scalar, uniform over [0, bound) up to a bias of at most bound / 2^32."""
    high, low = (_bits(each, ()) for each in split(key))
    span = jnp.uint32(bound)
    factor = jnp.uint32(pow(2, 32, bound))  # Of the upper 32 of 64 random bits.
    return ((high % span * factor + low % span) % span).astype(jnp.int32)


def coarse_symmetric(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Returns float32 numbers of 16 random bits, uniform over (-1, 1) with mean 0.

    Four of a hash, where `uniform` makes one: for dither, of which every parameter has its own.
    """
    size = math.prod(shape)
    words = _hashes(key, -(-size // 4))
    halves = jnp.concatenate([words & 0xFFFF, words >> 16]).ravel()[:size]
    return ((halves.astype(jnp.float32) + 0.5) * 2.0**-15 - 1).reshape(shape)


def _bits(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Returns random uint32 numbers: of element i, one word of the hash of i."""
    first, second = _hashes(key, math.prod(shape))
    return (first ^ second).reshape(shape)


def _hashes(key: jax.Array, num_hashes: int) -> jax.Array:
    """Returns the hashes of 0, 1, ..., uint32 `[2, num_hashes]`."""

    def hash_of(index: jax.Array) -> jax.Array:
        return jax.random.key_data(jax.random.fold_in(key, index))

    return jax.vmap(hash_of, out_axes=1)(jnp.arange(num_hashes, dtype=jnp.uint32))
