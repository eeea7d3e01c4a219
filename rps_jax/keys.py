"""Random numbers that do not depend on the user's configuration of JAX.

Both ends of a message draw its fate by themselves, so a draw has to be the same number wherever and
however it is made. The draws of `jax.random` change with `jax_threefry_partitionable` and
`jax_default_prng_impl`, and those of the hardware generators under vmap. So everything here is made
of one operation that depends on none of them: `fold_in` of a threefry key, one block of the
Threefry-2x32 hash (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011). In JAX's
default configuration the numbers are those of the functions of `jax.random` of the same name.

The hash is written out in elementwise operations, which XLA fuses with each other and with what is
made of the draws; that of `jax.random` is a loop on CPUs and a custom call on GPUs.
"""

import jax
import jax.numpy as jnp
import numpy as np

_IMPLEMENTATION = "threefry2x32"

OF_EXCHANGES, OF_WORKERS = 0, 1
"""What is folded first into a run's key: for what its exchanges draw, and what its workers do."""


def key_data(seed: int | jax.Array) -> jax.Array:
    """Returns the raw key of a seed, uint32 `[2]`, which any checkpoint format can hold.

    Args:
        seed: an integer; its lowest 32 bits count. May be traced.
    """
    low = np.uint32(seed & 0xFFFFFFFF) if isinstance(seed, int) else jnp.uint32(seed)
    return jnp.stack([jnp.uint32(0), low])


def portable(key: jax.Array) -> jax.Array:
    """Returns a threefry key for a key of any implementation, raw or typed."""
    return wrap_key(jax.random.key_data(key)[:2])


def wrap_key(data: jax.Array) -> jax.Array:
    """Returns the key of raw key data."""
    return jax.random.wrap_key_data(data, impl=_IMPLEMENTATION)


def fold_in(key: jax.Array, *numbers: jax.Array | int) -> jax.Array:
    """Returns a threefry key into which `jax.random.fold_in` would fold one number after another.

    Args:
        key: a threefry key.
        numbers: integer scalars; their lowest 32 bits count.
    """
    # Not `stack`: under vmap that transposes, which hides from XLA what the words are.
    return wrap_key(jnp.concatenate([word.reshape(1) for word in _hash(key, *numbers)]))


def split(key: jax.Array, number: int = 2) -> jax.Array:
    """Returns keys that are independent of each other, `[number]`."""
    return jax.vmap(lambda index: fold_in(key, index))(jnp.arange(number))


def uniform(key: jax.Array, shape: tuple[int, ...] = ()) -> jax.Array:
    """Returns float32 numbers, uniform over [0, 1)."""
    # 23 random bits as the fraction of a float in [1, 2).
    floats = jax.lax.bitcast_convert_type(
        (_bits(key, shape) >> 9) | jnp.uint32(0x3F800000), jnp.float32
    )
    return floats - jnp.float32(1)


def randint(key: jax.Array, bound: int) -> jax.Array:
    """Returns an int32 scalar, uniform over [0, bound) up to a bias of at most bound / 2^32."""
    high, low = jax.vmap(lambda each: _bits(each, ()))(split(key))
    span = jnp.uint32(bound)
    factor = jnp.uint32(pow(2, 32, bound))  # Of the upper 32 of 64 random bits.
    return ((high % span * factor + low % span) % span).astype(jnp.int32)


def _bits(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Returns random uint32 numbers: of element i, one word of the hash of i."""

    def word(index: jax.Array) -> jax.Array:
        high, low = _hash(key, index)
        return high ^ low

    size = 1
    for extent in shape:
        size *= extent
    return jax.vmap(word)(jnp.arange(size, dtype=jnp.uint32)).reshape(shape)


def _hash(key: jax.Array, *numbers: jax.Array | int) -> tuple[jax.Array, jax.Array]:
    """Returns the two words of a key into which integers are folded."""
    high, low = jax.random.key_data(key)
    for number in numbers:
        word = np.uint32(number) if isinstance(number, int) else jnp.uint32(number)
        high, low = _threefry(high, low, word)
    return high, low


_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


@jax.jit
def _threefry(high: jax.Array, low: jax.Array, word: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the Threefry-2x32 hash, of 20 rounds, of (0, `word`) under the key (high, low)."""
    schedule = (high, low, high ^ low ^ np.uint32(0x1BD11BDA))
    high, low = schedule[0], word + schedule[1]
    for group in range(5):
        for distance in _ROTATIONS[group % 2]:
            high = high + low
            turned = (low << np.uint32(distance)) | (low >> np.uint32(32 - distance))
            low = turned ^ high
        high = high + schedule[(group + 1) % 3]
        low = low + schedule[(group + 2) % 3] + np.uint32(group + 1)
    return high, low
