"""The metrics, against their definitions in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from mappings import MAPPINGS, awkward_params, places

import rps_jax as rps


@pytest.mark.parametrize(("way", "n"), places())
def test_consensus_distance_and_mean_model(way, n):
    params = awkward_params(n)
    measure = MAPPINGS[way](
        lambda axis, p: (rps.consensus_distance(p, axis), rps.mean_model(p, axis)), n
    )
    distance, mean = jax.device_get(measure(jax.tree.map(jnp.asarray, params)))

    flat = np.concatenate(
        [leaf.reshape(n, -1).astype(np.float64) for leaf in jax.tree.leaves(params)], axis=1
    )
    expected = np.sqrt(((flat - flat.mean(0)) ** 2).sum(1).mean())
    np.testing.assert_allclose(distance, np.full(n, expected), rtol=1e-5, atol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(
            a.astype(np.float64), b.astype(np.float64), rtol=0.02, atol=0.02
        ),
        mean,
        reference.all_reduce(params),
    )


def test_bytes_of_an_exchange_are_those_of_its_blocks():
    tree = {"a": jnp.zeros(10), "b": jnp.zeros((1, 3), jnp.bfloat16), "none": jnp.zeros(0)}
    # Four blocks of two packets: of 16 floats and 8 short ones, padded.
    assert rps.exchange_bytes(tree, num_workers=4, packets=2) == 2 * 3 * (16 * 4 + 8 * 2) // 4
    assert rps.exchange_bytes(tree, num_workers=1) == 0


def test_equal_models_are_at_distance_zero():
    params = {"x": np.ones((8, 5), np.float32), "none": np.zeros((8, 0), np.float32)}
    distance = MAPPINGS["shard_map"](lambda axis, p: rps.consensus_distance(p, axis), 8)(params)
    np.testing.assert_array_equal(distance, np.zeros(8))


def test_complex_models_are_as_far_apart_as_their_moduli():
    params = np.array([[0j], [6 + 8j]], np.complex64)
    distance = MAPPINGS["vmap"](lambda axis, p: rps.consensus_distance(p, axis), 2)(params)
    np.testing.assert_allclose(distance, [5, 5], rtol=1e-6)


@pytest.mark.parametrize("packets", [(), (3,)])
def test_of_a_delivery_without_a_worker_s_own_nothing_of_others_has_arrived(packets):
    n = 4
    nothing = jnp.zeros((n, n, *packets), bool)
    fraction = jax.jit(jax.vmap(lambda d: rps.delivered_fraction(d, "w"), axis_name="w"))
    np.testing.assert_array_equal(fraction(rps.Delivery(*[nothing] * 3)), np.zeros((2, n)))


@pytest.mark.parametrize(("way", "n"), places())
@pytest.mark.parametrize("packets", [None, 3])
def test_delivered_fraction_counts_links_of_each_phase(way, n, packets):
    channel = rps.Bernoulli(0.4, 0.2, packets=packets)

    def one_worker(axis, unused):
        delivery, _ = rps.draw_exchange(channel, (), jax.random.key(0), 0, axis)
        return rps.delivered_fraction(delivery, axis), delivery

    fraction, delivery = jax.device_get(MAPPINGS[way](one_worker, n)(np.zeros(n, np.float32)))
    links = ~np.eye(n, dtype=bool)
    for measured, view in (
        (fraction.reduce_scatter, delivery.sent),
        (fraction.all_gather, delivery.gathered),
    ):
        expected = view[links].mean() if n > 1 else 1.0
        np.testing.assert_allclose(measured, np.full(n, expected), rtol=1e-6)
