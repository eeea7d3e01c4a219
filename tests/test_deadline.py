"""Lateness: drops of what is later than a deadline. Five standard errors everywhere."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from many_exchanges import between_workers, drops_of

import rps_jax as rps

KEY = jax.random.key(2)


def views(channel, n, step=0, state=None):
    """Returns every worker's view of one exchange, and the states after it."""
    if state is None:
        state = jax.tree.map(lambda x: jnp.stack([x] * n), channel.init(n))
    return jax.device_get(exchange(channel, n, step, state))


@functools.partial(jax.jit, static_argnums=1)
def exchange(channel, n, step, state):
    def one_worker(state):
        return rps.draw_exchange(channel, state, KEY, step, "workers")

    return jax.vmap(one_worker, axis_name="workers", axis_size=n)(state)


def normal_tail(z):
    return math.erfc(z / 2**0.5) / 2


@pytest.mark.parametrize(
    ("tail", "expected"),
    [
        ("log-normal", lambda ratio, spread: normal_tail(math.log(ratio) / spread)),
        ("pareto", lambda ratio, spread: 0.5 * ratio ** (-1 / spread)),
    ],
)
@pytest.mark.parametrize("ratio", [1.0, 3.0])
def test_drops_are_the_tail_of_the_delays(tail, expected, ratio):
    spread = 0.6
    channel = rps.Deadline(0.02 * ratio, 0.02, spread, delay_tail=tail, packets=2)
    drops = between_workers(drops_of(channel, 6, steps=400))
    rate = expected(ratio, spread)
    assert abs(drops.mean() - rate) < 5 * (rate * (1 - rate) / drops.size) ** 0.5


def test_slow_workers_and_slow_links_are_late():
    n = 4
    by_worker = np.array([1.0, 1.0, 9.0, 1.0])
    drops = drops_of(rps.Deadline(0.03, 0.01, 0.0, by_worker), n, steps=1)[0, 0, 0, ..., 0]
    slow = by_worker > 1
    apart = ~np.eye(n, dtype=bool)
    np.testing.assert_array_equal(drops, (slow[:, None] | slow) & apart)
    by_link = np.ones((n, n))
    by_link[1, 3] = 9
    drops = drops_of(rps.Deadline(0.03, 0.01, 0.0, by_link), n, steps=1)[0, 0, 1, ..., 0]
    assert np.argwhere(drops).tolist() == [[1, 3]]


def test_both_ends_agree_on_what_is_late():
    n, state = 48, None
    slow_to_itself = np.where(np.eye(n, dtype=bool), 1e6, 1.0)
    channel = rps.Deadline(None, 0.01, 1.0, slow_to_itself, deadline_mads=1.0, packets=3)
    for step in range(3):
        delivery, state = views(channel, n, step, state)
        np.testing.assert_array_equal(delivery.sent, np.swapaxes(delivery.received, 0, 1))
        assert (state.seconds == state.seconds[0]).all()
        assert (state.seconds < 10).all()  # A deadline follows messages to others.


def test_a_worker_waits_for_the_last_message_or_the_deadline():
    n = 5
    patient, _ = views(rps.Deadline(math.inf, 0.01, 1.0), n)
    assert all(mask.all() for mask in patient.masks)
    deadline = float(np.median(patient.seconds)) / 2
    strict, _ = views(rps.Deadline(deadline, 0.01, 1.0), n)
    assert (strict.seconds <= patient.seconds).all()
    missed = ~(strict.received.all(axis=1) & strict.gathered.all(axis=1))
    np.testing.assert_allclose(strict.seconds[~missed], patient.seconds[~missed])
    both = ~strict.received.all(axis=1) & ~strict.gathered.all(axis=1)
    assert missed.any()
    np.testing.assert_allclose(strict.seconds[both], 2 * deadline, rtol=1e-6)
    just_in_time, _ = views(rps.Deadline(0.01, 0.01, 0.0), n)
    assert all(mask.all() for mask in just_in_time.masks)
    alone, _ = views(rps.Deadline(math.inf), 1)
    assert alone.seconds == 0
    slow_to_itself = np.where(np.eye(n, dtype=bool), 1e3, 1.0)
    others, _ = views(rps.Deadline(math.inf, 0.01, 0.0, slow_to_itself), n)
    np.testing.assert_allclose(others.seconds, 2 * 0.01, rtol=1e-6)


def test_a_deadline_that_follows_is_median_and_mads_and_drops_from_the_first_exchange():
    """Of normal log-delays with a small spread, the MAD is 0.6745 standard deviations."""
    n, spread, mads = 8, 0.01, 2.0
    channel = rps.Deadline(None, 0.5, spread, deadline_mads=mads, window=64)
    drops = between_workers(drops_of(channel, n, steps=3, runs=100))
    rate = normal_tail(0.6745 * mads)
    for step in range(3):
        # The deadline itself, of 512 delays, varies: half as much again for it.
        error = (rate * (1 - rate) / drops[:, step].size + 0.0022 / 100) ** 0.5
        assert abs(drops[:, step].mean() - rate) < 5 * error


@pytest.mark.long
def test_a_deadline_follows_when_the_network_slows_down():
    n, state = 6, None
    waits = []
    for step, median in enumerate([0.01, 0.01, 0.1, 0.1, 0.1, 0.1]):
        channel = rps.Deadline(median_delay=median, delay_spread=0.1, window=2)
        delivery, state = views(channel, n, step, state)
        waits.append(delivery.received.mean())
    assert waits[1] > 0.8
    assert waits[2] == 1 / n  # All are late, but a worker's own.
    assert waits[5] > 0.8


def test_the_train_step_reports_the_slowest_worker():
    n, channel = 4, rps.Deadline(math.inf, 0.01, 1.0)
    optimizer = optax.sgd(0.1)

    def loss_fn(params, model_state, batch, key):
        del key
        return jnp.sum((params - batch) ** 2), model_state

    step = rps.make_train_step(loss_fn, optimizer, channel, "workers")
    one = rps.init_train_state(jnp.zeros(3), (), optimizer, channel, n)
    state = jax.tree.map(lambda x: jnp.stack([x] * n), one)
    _, metrics = jax.jit(jax.vmap(step, axis_name="workers"))(state, jnp.zeros((n, 3)))

    def one_worker(_):
        key = rps.keys.wrap_key(one.key)
        return rps.draw_exchange(channel, (), key, 0, "workers")[0].seconds

    waits = jax.jit(jax.vmap(one_worker, axis_name="workers", axis_size=n))(jnp.zeros(n))
    np.testing.assert_allclose(metrics.exchange_seconds, np.full(n, waits.max()), rtol=1e-6)


def test_the_least_draw_is_a_short_delay(monkeypatch):
    monkeypatch.setattr(rps.keys, "uniform", lambda key, shape=(): jnp.zeros(shape))
    channel = rps.Deadline(math.inf)
    delivery, _ = jax.jit(lambda key: channel.sample((), key, 0, 4))(KEY)
    assert 0 < delivery.seconds < 2 * channel.median_delay


@pytest.mark.parametrize("deadline", [pytest.param(None, marks=pytest.mark.long), math.inf])
def test_delays_beyond_all_measure_are_finite(deadline):
    channel = rps.Deadline(deadline, 1e30, 1e30, deadline_mads=1e30)
    delivery, _ = views(channel, 5)
    assert np.isfinite(delivery.seconds).all()
    assert (delivery.seconds > 0).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"deadline": 0}, "deadline=0: expected a positive number"),
        ({"median_delay": -1}, "median_delay=-1: expected a positive, finite number"),
        ({"median_delay": math.inf}, "median_delay=inf: expected a positive, finite number"),
        ({"median_delay": 1e-50}, "median_delay=1e-50: expected a positive, finite number"),
        ({"delay_spread": -0.1}, "delay_spread=-0.1: expected a finite number of at least 0"),
        ({"deadline_mads": math.nan}, "deadline_mads=nan: expected a finite number of at least 0"),
        ({"slowness": np.zeros(3)}, "slowness=0.0: expected a positive"),
        ({"slowness": np.ones((2, 3))}, r"slowness has shape \(2, 3\): expected \(num_workers,\)"),
        ({"delay_tail": "normal"}, "delay_tail='normal': expected log-normal or pareto"),
        ({"window": 0}, "window=0: expected an integer of at least 1"),
        ({"packets": 0}, "packets=0: expected None or an integer"),
    ],
)
def test_bad_arguments_raise(options, message):
    with pytest.raises(ValueError, match=message):
        rps.Deadline(**options)


def test_slowness_of_other_workers_is_refused():
    channel = rps.Deadline(0.1, slowness=np.ones(3))
    with pytest.raises(ValueError, match="num_workers=4: expected 3, the rows of slowness"):
        channel.sample((), KEY, 0, 4)
