"""Random crops and flips."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from data import random_crop_and_flip


def all_outcomes(image, padding):
    """Every crop of a padded image, plain and mirrored."""
    height, width, _ = image.shape
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    for top in range(2 * padding + 1):
        for left in range(2 * padding + 1):
            crop = padded[top : top + height, left : left + width]
            yield crop
            yield crop[:, ::-1]


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, jnp.bfloat16])
@pytest.mark.parametrize("padding", [pytest.param(0, marks=pytest.mark.long), 1])
def test_draws_every_crop_of_the_padded_image_and_nothing_else(dtype, padding):
    image = np.arange(1, 25).reshape(4, 3, 2).astype(dtype)
    batch = jnp.asarray(np.broadcast_to(image, (400, *image.shape)))
    out = jax.jit(random_crop_and_flip, static_argnums=2)(jax.random.key(0), batch, padding)
    assert out.dtype == batch.dtype
    drawn = {np.asarray(x, np.float32).tobytes() for x in out}
    expected = {np.ascontiguousarray(x, np.float32).tobytes() for x in all_outcomes(image, padding)}
    # 18 outcomes at most: 400 draws miss one of them with probability 2e-9.
    assert drawn == expected


def test_images_keep_their_place_in_the_batch():
    batch = jnp.broadcast_to(jnp.arange(1, 9)[:, None, None, None], (8, 5, 5, 1))
    out = jax.jit(lambda key, x: random_crop_and_flip(key, x, padding=2))(jax.random.key(0), batch)
    np.testing.assert_array_equal(out.max(axis=(1, 2, 3)), np.arange(1, 9))


@pytest.mark.long
def test_vmap_equals_shard_map():
    num_workers = jax.device_count()
    keys = jax.random.split(jax.random.key(0), num_workers)
    images = jax.random.normal(jax.random.key(1), (num_workers, 3, 8, 8, 3))
    mesh = jax.make_mesh((num_workers,), ("workers",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = P("workers")
    mapped = jax.shard_map(
        lambda key, x: random_crop_and_flip(key[0], x[0])[None],
        mesh=mesh,
        in_specs=spec,
        out_specs=spec,
    )
    np.testing.assert_array_equal(
        jax.jit(mapped)(keys, images), jax.jit(jax.vmap(random_crop_and_flip))(keys, images)
    )
