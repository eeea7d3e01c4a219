"""Sums of workers that share a device: the same in both forms, and from where their models lie."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rps_jax as rps
from rps_jax import device_sums
from rps_jax.device_sums import Term


@pytest.mark.parametrize("num_workers", [1, 2, 7])
@pytest.mark.parametrize("dtype", ["float32", "complex64", "int32"])
def test_both_forms_add_what_has_arrived_and_nothing_else(num_workers, dtype):
    rng = np.random.default_rng(0)
    values = rng.integers(-9, 9, (num_workers, 2, 5, 3)).astype(dtype)
    arrived = rng.random((num_workers, 5)) < 0.5
    arrived[:, 0] = False  # Of a packet, nothing.
    mask = np.broadcast_to(arrived[:, None, :, None], values.shape)
    expected = np.where(mask, values, 0).sum(0)
    if dtype != "int32":
        values[~mask] = np.nan
    terms = [Term(jnp.asarray(values), jnp.asarray(arrived))]
    for form in (device_sums._reduced, device_sums._reduced_in_pairs):
        (total,) = jax.jit(form)(terms)
        assert total.dtype == dtype
        np.testing.assert_array_equal(total, expected)


def test_workers_that_share_a_device_are_averaged_where_they_lie():
    n = 16
    params = {"a": jnp.zeros((n, 300, 100)), "b": jnp.zeros((n, 50_000))}
    delivery = rps.Delivery(*[jnp.ones((n, n), bool)] * 3)
    average = jax.vmap(lambda p, d: rps.average_models(p, d, "workers"), axis_name="workers")
    memory = jax.jit(average).lower(params, delivery).compile().memory_analysis()
    # Averages, and not one more copy of all models: with zeros for what is dropped.
    assert memory.temp_size_in_bytes < 0.1 * memory.output_size_in_bytes
