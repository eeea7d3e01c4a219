"""Shards of workers, the order of an epoch, and batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from data import epoch_order, stack_shards, take

ARRAYS = {
    "image": np.arange(1, 41, dtype=np.uint8).reshape(10, 2, 2, 1),
    "label": np.arange(10, dtype=np.int32),
}
PARTS = [np.array([7, 2, 9]), np.array([0, 1, 3, 4]), np.array([], int)]


def test_shards_hold_their_parts_then_zeros():
    shards = stack_shards(ARRAYS, PARTS)
    assert set(shards) == {"image", "label", "weight"}
    for worker, part in enumerate(PARTS):
        for key, array in ARRAYS.items():
            assert shards[key].dtype == array.dtype
            assert shards[key].shape == (3, 4, *array.shape[1:])
            np.testing.assert_array_equal(shards[key][worker, : len(part)], array[part])
            assert not shards[key][worker, len(part) :].any()
        np.testing.assert_array_equal(shards["weight"][worker], np.arange(4) < len(part))


def test_some_workers_alone_equal_their_rows_of_all(tmp_path):
    np.save(tmp_path / "image.npy", ARRAYS["image"])
    mapped = {**ARRAYS, "image": np.load(tmp_path / "image.npy", mmap_mode="r")}
    every = stack_shards(ARRAYS, PARTS, capacity=6)
    some = stack_shards(mapped, PARTS[1:], capacity=6)
    for key, array in every.items():
        np.testing.assert_array_equal(some[key], array[1:])


@pytest.mark.parametrize(
    ("arrays", "capacity", "message"),
    [(ARRAYS, 3, "capacity=3: expected at least 4"), ({"weight": np.zeros(10)}, None, "'weight'")],
)
def test_stack_shards_rejects(arrays, capacity, message):
    with pytest.raises(ValueError, match=message):
        stack_shards(arrays, PARTS, capacity)


@pytest.mark.parametrize("num_examples", [0, 1, 5, 8])
def test_order_has_the_examples_first_and_everything_once(num_examples):
    weight = jnp.array([1.0] * num_examples + [0.0] * (8 - num_examples))
    order = epoch_order(jax.random.key(0), weight)
    assert order.dtype == jnp.int32
    np.testing.assert_array_equal(np.sort(order[:num_examples]), np.arange(num_examples))
    np.testing.assert_array_equal(np.sort(order), np.arange(8))


def test_order_is_uniform():
    # 24 orders of four examples, 24,000 draws: chi-square with 23 degrees of freedom is below
    # 58.6 with probability 0.99994.
    weight = jnp.array([1.0, 1, 1, 1, 0])
    keys = jax.random.split(jax.random.key(1), 24_000)
    orders = jax.jit(jax.vmap(epoch_order, (0, None)))(keys, weight)
    _, counts = np.unique(np.asarray(orders), axis=0, return_counts=True)
    assert len(counts) == 24
    assert ((counts - 1000) ** 2 / 1000).sum() < 58.6


def test_an_epoch_of_batches_visits_every_example_once():
    shards = jax.tree.map(jnp.asarray, stack_shards(ARRAYS, [np.arange(7), np.arange(3)], 8))
    for worker, num_examples in enumerate((7, 3)):
        shard = jax.tree.map(lambda x, worker=worker: x[worker], shards)
        order = epoch_order(jax.random.key(2), shard["weight"])
        seen = []
        # Batches of three do not divide the capacity of eight: the last one is filled up.
        for start in (0, 3, 6):
            batch = jax.jit(take, static_argnums=3)(shard, order, start, 3)
            assert batch["image"].shape == (3, 2, 2, 1)
            assert batch["image"].dtype == jnp.uint8
            real = np.asarray(batch["weight"]) == 1
            np.testing.assert_array_equal(
                np.asarray(batch["image"])[real],
                ARRAYS["image"][np.asarray(batch["label"])[real]],
            )
            seen.extend(np.asarray(batch["label"])[real].tolist())
        assert sorted(seen) == list(range(num_examples))


def test_vmap_equals_shard_map():
    num_workers = jax.device_count()
    shards = stack_shards(ARRAYS, [np.arange(w % 3 + 1) for w in range(num_workers)])
    keys = jax.random.split(jax.random.key(3), num_workers)

    def step(key, shard):
        return take(shard, epoch_order(key, shard["weight"]), 1, 2)

    def one_worker(key, shard):
        return jax.tree.map(lambda x: x[None], step(key[0], jax.tree.map(lambda x: x[0], shard)))

    mesh = jax.make_mesh((num_workers,), ("workers",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = P("workers")
    mapped = jax.jit(jax.shard_map(one_worker, mesh=mesh, in_specs=spec, out_specs=spec))
    jax.tree.map(np.testing.assert_array_equal, mapped(keys, shards), jax.vmap(step)(keys, shards))
