"""Sketches of updates, and the consensus distance that theory expects from them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from mappings import MAPPINGS, awkward_params

import rps_jax as rps
from rps_jax import theory
from rps_jax.updates import BUCKETS, INTERVALS, sketch


@pytest.mark.parametrize(("rows", "noise"), [(128, 1), (4, 0)])
def test_products_of_sketches_are_those_of_the_updates_on_average_over_the_signs(
    monkeypatch, rows, noise
):
    """Within five standard errors: fails by chance once in 1.7 million keys.

    Of few rows, not all coordinates are looked at: they are alike, then.
    """
    monkeypatch.setattr("rps_jax.updates._ROWS", rows)
    normal = np.random.default_rng(0).normal(size=(2, 10 * BUCKETS)).astype(np.float32)
    one, two = 1 + noise * normal
    names = [str(number) for number in range(20)]
    sketch_all = jax.jit(lambda x: jnp.stack([sketch({name: x}) for name in names]))
    products = np.sum(sketch_all(one) * sketch_all(two), axis=1)
    error = products.std(ddof=1) / len(names) ** 0.5
    assert abs(products.mean() - one @ two) < 5 * error
    assert error < 0.1 * abs(one @ two)


@pytest.mark.parametrize("leaf", [np.array([3 + 4j, 12j], np.complex64), -13.0])
def test_a_sketch_is_of_any_numbers(leaf):
    # So few coordinates that each has a bucket of its own.
    assert float(jnp.sum(sketch([leaf]) ** 2)) == pytest.approx(np.sum(np.abs(leaf) ** 2))


@pytest.mark.long
def test_a_sketch_looks_at_all_of_a_large_leaf_and_at_every_column_of_it():
    squares = jax.jit(lambda x: jnp.stack([jnp.sum(sketch({name: x}) ** 2) for name in "abcd"]))
    # As many coordinates are looked at as of a hundredth of it, wherever its squares lie.
    columns = np.zeros((4096, 512), np.float32)
    columns[:, 1::2] = 1.0
    # And of one of which half are looked at.
    rows = np.zeros((128, 128), np.float32)
    rows[64:] = 1.0
    for leaf in (columns, columns.reshape(512, 4096), rows):
        assert np.mean(squares(leaf)) == pytest.approx(leaf.sum(), rel=0.5)


@pytest.mark.parametrize(
    ("way", "n", "every", "steps"),
    [("vmap", 5, 1, 2), ("vmap", 5, 3, 5), ("shard_map", 3, 3, 5), ("vmap_in_shard_map", 6, 3, 5)],
)
def test_products_are_of_all_workers_wherever_they_are_the_newest_first(way, n, every, steps):
    trees = [awkward_params(n, seed) for seed in range(steps)]

    def one_worker(axis, *updates):
        remember = rps.remember_updates(every)
        state = remember.init(())
        for update in updates:
            unchanged, state = remember.update(update, state)
            assert unchanged is update
        return rps.update_products(state, axis)

    found = MAPPINGS[way](one_worker, n)(*(jax.tree.map(jnp.asarray, tree) for tree in trees))
    sketch_all = jax.jit(jax.vmap(sketch))
    sketches = np.stack([sketch_all(tree) for tree in trees])
    intervals = [sketches[first : first + every].sum(0) for first in range(0, steps, every)][::-1]
    mean = np.mean(intervals, axis=1)
    apart = intervals - mean[:, None]
    known = np.arange(INTERVALS) < len(intervals)
    for of_worker in range(n):
        for products, expected in (
            (found.apart, np.einsum("ane,bne->ab", apart, apart) / n),
            (found.together, mean @ mean.T),
        ):
            values = np.asarray(products)[of_worker]
            np.testing.assert_allclose(values[np.ix_(known, known)], expected, rtol=1e-3, atol=1e-3)
            assert not values[~known].any()


def test_gains_add_up_to_the_steady_state():
    n, rate, momentum, ages = 8, 0.3, 0.9, 300
    found = theory.gains(rps.Bernoulli(rate), n, ages)
    beta, gamma = theory.contraction(n, rate), theory.kept(n, rate)
    lag = abs(np.subtract.outer(np.arange(ages), np.arange(ages)))
    # Momentum: an update's autocovariance falls off by its factor.
    expected = beta / (1 - beta) * (1 + gamma * momentum) / (1 - gamma * momentum)
    assert np.sum(found.apart * momentum**lag) == pytest.approx(expected)
    # Plain SGD: noise, and data that differ between the workers.
    variance, dissimilarity = 2.0, 0.5
    updates = dissimilarity + (lag == 0) * variance * (n - 1) / n
    steady = theory.steady_consensus_distance(n, rate, 0.1, variance, dissimilarity)
    assert 0.01 * np.sum(found.apart * updates) == pytest.approx(steady**2)


def test_gains_of_a_channel_that_draws_its_own_are_measured():
    class Nothing(rps.Bernoulli):
        def sample(self, state, key, worker, num_workers):
            return rps.Bernoulli(1.0).sample(state, key, worker, num_workers)

    found = theory.gains(Nothing(0.1), 3, 1, num_exchanges=2)
    np.testing.assert_allclose(found.apart, 1, rtol=1e-5)


def test_gains_with_fixed_servers_are_those_of_exchanges_with_fixed_servers():
    n, rate = 4, 0.3
    exact = theory.burst_contractions(n, rate, 1 / (1 - rate), 2)  # Independent drops.
    found = theory.gains(rps.Bernoulli(rate), n, 2, assignment="fixed")
    np.testing.assert_allclose(found.apart.diagonal(), exact, rtol=0.08)
    assert exact[1] > 1.1 * exact[0] ** 2


@pytest.mark.parametrize("ongoing", [False, True])
def test_the_predicted_distance_is_that_of_exchanges_without_chance(ongoing):
    """Each leaves half of what two workers differ by; a tenth as much of what they share parts."""
    updates = np.random.default_rng(0).normal(size=(2, INTERVALS))  # One number, the newest first.
    mean = updates.mean(0)
    apart = updates[0] - mean
    left = 0.5 ** np.arange(1, INTERVALS + 1)
    gains = theory.Gains(np.outer(left, left), np.outer(0.1 * left, 0.1 * left), left)
    products = rps.UpdateProducts(np.outer(apart, apart), np.outer(mean, mean))
    old = slice(int(ongoing), INTERVALS)
    left = left[: INTERVALS - ongoing]
    squared = (ongoing * apart[0] + left @ apart[old]) ** 2 + (0.1 * left @ mean[old]) ** 2
    assert theory.predicted_distance(gains, products, ongoing) == pytest.approx(squared**0.5)


@pytest.mark.long
def test_gains_by_monte_carlo_are_those_of_closed_forms():
    n, rate, ages = 8, 0.3, 4
    exact = theory.gains(rps.Bernoulli(rate), n, ages)
    found = theory.gains(rps.PerLink(np.full((n, n), rate)), n, ages, num_exchanges=300)
    np.testing.assert_allclose(found.apart, exact.apart, rtol=0.05, atol=2e-3)
    np.testing.assert_allclose(found.kept, exact.kept, rtol=0.05, atol=2e-3)
    assert np.abs(found.together).max() < 1e-6
    # A stale miss takes the update back: what parts is that others have got theirs.
    left, missed = theory.contraction(n, rate), theory.moments(n, rate, on_miss="zero")
    stale = theory.gains(rps.Bernoulli(rate), n, ages, on_miss="stale", num_exchanges=300)
    age = np.arange(ages)
    for gain, first in ((stale.apart, missed.contraction), (stale.together, missed.equal_spread)):
        np.testing.assert_allclose(gain.diagonal(), first * left**age, rtol=0.1, atol=2e-3)


@pytest.mark.parametrize(
    ("channel", "assignment", "every"),
    [
        (rps.Bernoulli(0.3), "random", 3),
        pytest.param(rps.Bernoulli(0.3), "random", 1, marks=pytest.mark.long),
        pytest.param(rps.GilbertElliott(0.2, 4), "fixed", 1, marks=pytest.mark.long),
    ],
)
def test_the_predicted_distance_is_that_of_a_training_on_noise(channel, assignment, every):
    """Of noise with momentum, in the midst of an interval too; within five standard errors."""
    n, steps, trainings = 6, 41, 60
    optimizer = optax.chain(optax.sgd(0.1, momentum=0.8), rps.remember_updates(every))
    rule = rps.rules.AverageModels(local_steps=every)

    def loss_fn(params, model_state, batch, key):
        return params @ jax.random.normal(key, params.shape), model_state

    step = rps.make_train_step(
        loss_fn, optimizer, channel, "w", algorithm=rule, assignment=assignment
    )
    gains = theory.gains(channel, n, INTERVALS, rule=rule, assignment=assignment)

    def one_worker(state):
        state = jax.lax.fori_loop(0, steps, lambda _, state: step(state, ())[0], state)
        *_, sketches = state.opt_state
        return rps.update_products(sketches, "w"), rps.consensus_distance(state.params, "w")

    def training(seed):
        one = rps.init_train_state(
            jnp.zeros(20 * n), (), optimizer, channel, n, seed, algorithm=rule
        )
        return jax.vmap(one_worker, axis_name="w", axis_size=n, in_axes=None)(one)

    products, measured = jax.jit(jax.vmap(training))(jnp.arange(trainings))
    predicted = np.array([
        theory.predicted_distance(
            gains, rps.UpdateProducts(*(x[number, 0] for x in products)), steps % every > 0
        )
        for number in range(trainings)
    ])  # fmt: skip
    differences = np.asarray(measured[:, 0]) ** 2 - predicted**2
    error = differences.std(ddof=1) / trainings**0.5
    assert abs(differences.mean()) < 5 * error
    assert error < 0.1 * np.mean(predicted**2)


def test_equal_workers_are_expected_to_stay_equal():
    nothing = theory.gains(rps.Reliable(), 4, 3)
    ones = rps.UpdateProducts(*np.ones((2, INTERVALS, INTERVALS)))
    assert theory.predicted_distance(nothing, ones) == 0
    assert theory.predicted_distance(theory.gains(rps.Bernoulli(0.5), 1, 3), ones) == 0
