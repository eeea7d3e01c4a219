"""Values that are rounded in messages: what stays with a worker, and what is sent."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from datagrams import N
from run_workers import run_workers, stacked

import rps_jax as rps
from rps_jax.averaging import average_or_else
from rps_jax.keys import key_data
from rps_jax.metrics import exchange_bytes
from rps_jax.rounding import rounded
from rps_jax.step_exchange import StepExchange

DTYPES = ["bfloat16", "float16"]


def averaged(rule, trees, drop_rate, steps=1, change=0.0):
    """The workers' trees after exchanges, each after a local step of `change`."""
    carrier = rps.MaskedCollectives(rps.Bernoulli(drop_rate), "workers")

    def one_step(step, tree):
        tree = jax.tree.map(lambda x: x + jnp.asarray(change, x.dtype), tree)
        return rule.exchange(tree, (), StepExchange(carrier, key_data(0), step, ()))[0]

    def one_worker(tree):
        return jax.lax.fori_loop(0, steps, one_step, tree)

    return jax.device_get(jax.jit(jax.vmap(one_worker, axis_name="workers"))(trees))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_worker_that_hears_nothing_keeps_every_bit(dtype):
    values = np.random.default_rng(0).normal(size=(4, 9)).astype(np.float32)
    values[0, :3] = np.inf, np.nan, 1e30
    found = averaged(rps.rules.AverageModels(message_dtype=dtype), {"x": values}, drop_rate=1.0)
    np.testing.assert_array_equal(found["x"], values)


class Given(rps.Carrier):
    """Of an axis "workers", by a Delivery that is given."""

    def __init__(self, delivery):
        self.delivery = delivery

    def worker(self):
        return jax.lax.axis_index("workers")

    def exchange(self, state, key, step, tree, otherwise, server):
        del key, step
        average = average_or_else(tree, otherwise, self.delivery, "workers", server=server)
        return average, self.delivery, state


def test_a_worker_that_is_no_longer_finite_takes_the_average():
    """Worker 0, whose own messages reach nobody else."""
    values = np.ones((3, 4), np.float32)
    values[0] = np.nan, np.inf, 1e30, 1
    rule = rps.rules.AverageModels(message_dtype="float16")

    def one_worker(tree, worker):
        others = jnp.arange(3) == jnp.where(worker == 0, 0, jnp.arange(3))
        delivery = rps.Delivery(others, (jnp.arange(3) > 0) | (worker == 0), jnp.ones(3, bool))
        given = Given(delivery)
        return rule.exchange(tree, (), StepExchange(given, key_data(0), jnp.int32(0), ()))[0]

    found = jax.vmap(one_worker, axis_name="workers")({"x": values}, jnp.arange(3))["x"]
    # The block that worker 0 serves itself has its own values in the average.
    np.testing.assert_allclose(found[:, 2:], 1, atol=2e-3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("drop_rate", [0.0, 0.3])
def test_models_that_are_equal_stay_equal(dtype, drop_rate):
    values = np.tile(np.random.default_rng(0).normal(size=9).astype(np.float32), (4, 1))
    found = averaged(rps.rules.AverageModels(message_dtype=dtype), {"x": values}, drop_rate)
    np.testing.assert_array_equal(found["x"], values)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("num_workers", "drop_rate"), [(2, 0.0), (5, 0.0), (8, 0.1)])
def test_steps_below_the_rounding_add_up(dtype, num_workers, drop_rate):
    """The models' mean makes steps of a hundredth of a spacing, whatever the models differ by."""
    eps = float(jnp.finfo(dtype).eps)
    rng = np.random.default_rng(0)
    values = rng.uniform(1.4, 1.4 + eps, size=(num_workers, 5000)).astype(np.float32)
    rule = rps.rules.AverageModels(message_dtype=dtype)
    found = averaged(rule, {"x": values}, drop_rate, steps=300, change=1e-2 * eps)
    made = (found["x"].astype(np.float64) - values).mean() / (3 * eps)
    np.testing.assert_allclose(made, 1, atol=0.15)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_error_is_that_of_rounding_messages_and_averages(dtype):
    values = np.random.default_rng(0).uniform(1.1, 1.9, size=(4, 50)).astype(np.float32)
    found = averaged(rps.rules.AverageModels(message_dtype=dtype), {"x": values}, drop_rate=0.0)
    eps = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(found["x"] - values.mean(0), 0, atol=1.51 * eps)
    assert np.abs(found["x"].mean(0) - values.mean(0)).max() < 1.01 * eps


def test_a_zero_is_dithered_no_more_than_small_numbers():
    values = np.full((4, 50), 1e-3, np.float32)
    values[0] = 0
    found = averaged(rps.rules.AverageModels(message_dtype="bfloat16"), {"x": values}, 0.0)
    np.testing.assert_allclose(found["x"] - values.mean(0), 0, atol=1.51 * 2**-7 * 1e-3)


def test_gradients_are_the_same_on_every_worker():
    values = np.random.default_rng(0).normal(size=(4, 9)).astype(np.float32)
    rule = rps.rules.AverageGradients(message_dtype="float16", on_miss="zero")
    found = averaged(rule, {"x": values}, drop_rate=0.0)
    np.testing.assert_array_equal(found["x"], found["x"][:1].repeat(4, 0))
    np.testing.assert_allclose(found["x"], values.mean(0, keepdims=True).repeat(4, 0), atol=2e-3)


def test_what_is_narrow_or_whole_is_sent_as_it_is():
    tree = {
        "wide": jnp.zeros(1000),
        "narrow": jnp.zeros(3, jnp.bfloat16),
        "count": jnp.zeros(2, jnp.int32),
    }
    rule = rps.rules.AverageModels(message_dtype="float16")
    sent = jax.eval_shape(rule.sends, tree)
    assert {name: str(leaf.dtype) for name, leaf in sent.items()} == {
        "wide": "float16",
        "narrow": "bfloat16",
        "count": "int32",
    }
    wide = {"wide": tree["wide"]}
    assert 2 * exchange_bytes(rule.sends(wide), 4) == exchange_bytes(wide, 4)


def test_half_as_much_goes_over_a_network():
    models = np.random.default_rng(0).uniform(1, 2, size=(N, 20_000)).astype(np.float32)

    def work(dtype, network, worker):
        averaged = network.average_models({"x": jnp.asarray(models[worker])}, message_dtype=dtype)
        return averaged, network.bytes_sent

    wide, half = (
        run_workers(functools.partial(work, dtype), deadline=20.0) for dtype in (None, "float16")
    )
    found = stacked([averaged for averaged, _ in half])["x"]
    np.testing.assert_allclose(found, models.mean(0, keepdims=True).repeat(N, 0), atol=2e-3)
    assert half[0][1] < 0.52 * wide[0][1]


def test_rounding_stays_where_compilers_may_leave_it_out():
    """XLA does on GPUs, where it takes more precision than is asked for to be as good."""
    lowered = jax.jit(lambda x: rounded(x, "float16")).lower(jnp.ones(3))
    assert "optimization_barrier" in lowered.as_text()


def test_inside_of_a_compiled_function_rounding_needs_the_number_of_the_exchange():
    def work(network, worker):
        averaged = [
            jax.jit(lambda x, step: network.average_models(x, message_dtype="float16", step=step))(
                jnp.full(3, 1.0 + worker), step
            )
            for step in range(2)
        ]
        with pytest.raises(ValueError, match="step=None: expected the number of the exchange"):
            jax.jit(lambda x: network.average_models(x, message_dtype="float16"))(jnp.ones(3))
        return jax.block_until_ready(averaged)

    for averaged in run_workers(work, deadline=20.0):
        np.testing.assert_allclose(averaged, 2, atol=4e-3)


def test_other_dtypes_are_refused():
    with pytest.raises(ValueError, match="message_dtype='int8': expected bfloat16 or float16, or"):
        rps.rules.AverageModels(message_dtype="int8")
