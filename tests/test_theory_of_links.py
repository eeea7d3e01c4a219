"""Closed forms for links that differ, bursts and the steady state, against enumeration and runs."""

import itertools

import jax
import numpy as np
import pytest

import rps_jax as rps
from rps_jax import theory
from tests.test_theory import mixing_matrix


def enumerated(scatter, gather):
    """E[W W^T] and E[W A W^T] over every outcome and every server, of rates by link."""
    n = len(scatter)
    spread, mixed, mean = np.zeros((n, n)), np.zeros((n, n)), np.full((n, n), 1 / n)
    for server in range(n):
        free = [bits for bits in itertools.product((True, False), repeat=n) if bits[server]]
        for arrived, gathered in itertools.product(free, free):
            probability = 1 / n
            for bits, rates in ((arrived, scatter[:, server]), (gathered, gather[server])):
                chances = np.where(bits, 1 - rates, rates)
                probability *= np.delete(chances, server).prod()
            w = mixing_matrix(n, server, arrived, gathered)
            spread += probability * w @ w.T
            mixed += probability * w @ mean @ w.T
    return spread, mixed


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_link_alphas_equal_the_enumeration_of_every_outcome(n):
    scatter, gather = np.random.default_rng(n).random((2, n, n))
    scatter[0, 1], gather[1, 0] = 1, 0  # a link that never delivers, one that always does
    traces = [np.trace(matrix) for matrix in enumerated(scatter, gather)]
    np.testing.assert_allclose(
        theory.link_alphas(scatter, gather), (np.array(traces) - 1) / (n - 1), atol=1e-12
    )


@pytest.mark.parametrize(("n", "rate", "gather_rate"), [(1, 0.5, 0.5), (5, 0.2, 0.7), (64, 1, 1)])
def test_link_alphas_of_equal_links_are_alphas(n, rate, gather_rate):
    found = theory.link_alphas(np.full((n, n), rate), np.full((n, n), gather_rate))
    np.testing.assert_allclose(found, theory.alphas(n, rate, gather_rate), atol=1e-12)


@pytest.mark.parametrize(
    "channel",
    [
        pytest.param(
            rps.PerLink.one_bad_worker(16, worker=3, drop_rate=0.8), marks=pytest.mark.long
        ),
        rps.PerLink.racks([4, 4, 4], within=0.01, between=0.4),
    ],
)
def test_real_exchanges_over_links_that_differ_are_as_predicted(channel):
    """Within five standard errors: fails by chance once in 1.7 million keys."""
    n = channel.drop_rates.shape[-1]
    expected = theory.link_alphas(channel.drop_rates)
    measured = theory.measure(channel, n, num_exchanges=2000, seed=3)
    contraction = expected.alpha_1 - expected.alpha_2
    assert abs(measured.means.contraction - contraction) < 5 * measured.errors.contraction
    assert abs(measured.means.drift - expected.alpha_2) < 5 * measured.errors.drift
    assert measured.errors.contraction < 0.05 * contraction


def test_each_exchange_is_measured_on_models_of_its_own():
    """Within five standard errors, which are of the models: drops are always the same."""
    channel = rps.PerLink.one_bad_link(3, 0, 1, drop_rate=1.0)
    expected = theory.link_alphas(channel.drop_rates)
    found = theory.measure(channel, 3, num_exchanges=50, assignment="fixed")
    error = found.means.contraction - (expected.alpha_1 - expected.alpha_2)
    assert abs(error) < 5 * found.errors.contraction


@pytest.mark.parametrize(
    ("rate", "packets", "burst", "good", "bad"),
    [(0.1, 6, 3.0, 0, 1), (0.6, 4, 1.5, 0, 1), (0.2, 1, 8, 0, 1), (0.2, 5, 3.0, 0.1, 0.7)],
)
def test_whole_blocks_equal_the_enumeration_of_the_link_states(rate, packets, burst, good, bad):
    share = (rate - good) / (bad - good)
    turns_good = 1 / burst
    turns_bad = share * turns_good / (1 - share)
    chain = np.array([[1 - turns_bad, turns_bad], [turns_good, 1 - turns_good]])
    stationary = np.array([1 - share, share])
    np.testing.assert_allclose(stationary @ chain, stationary)
    whole = sum(
        stationary[path[0]]
        * np.prod([chain[a, b] for a, b in itertools.pairwise(path)])
        * np.prod([1 - (good, bad)[state] for state in path])
        for path in itertools.product((0, 1), repeat=packets)
    )
    assert theory.whole_block(rate, packets, burst, good, bad) == pytest.approx(whole)
    # Bursts without a memory, links that are always bad, and none at all are independent drops.
    alone = (1 - rate) ** packets
    assert theory.whole_block(rate, packets, 1 / (1 - share), good, bad) == pytest.approx(alone)
    assert theory.whole_block(rate, packets, 5, 0, rate) == pytest.approx(alone)
    assert theory.whole_block(rate, packets) == pytest.approx(alone)


@pytest.mark.parametrize("n", [2, 3, 16, 200])
def test_the_largest_drop_rate_contracts_to_the_tolerance(n):
    rates = np.linspace(0, 1, 101)
    assert (np.diff([theory.contraction(n, rate) for rate in rates]) > 0).all()
    for tolerance in (0.01, 0.3, 0.9):
        rate = theory.largest_drop_rate(n, tolerance)
        assert theory.contraction(n, rate) == pytest.approx(tolerance)
    assert theory.largest_drop_rate(n, 0) == pytest.approx(0, abs=1e-12)
    assert theory.largest_drop_rate(n, 1) == 1


@pytest.mark.parametrize(("n", "rate", "gather_rate"), [(2, 0.3, 0.3), (4, 0.2, 0.7), (5, 1, 1)])
def test_what_a_worker_keeps_equals_the_enumeration(n, rate, gather_rate):
    scatter, gather = np.full((n, n), rate), np.full((n, n), gather_rate)
    kept = 0.0
    for server in range(n):
        free = [bits for bits in itertools.product((True, False), repeat=n) if bits[server]]
        for arrived, gathered in itertools.product(free, free):
            chance = np.where(arrived, 1 - scatter[:, server], scatter[:, server])
            chance = chance * np.where(gathered, 1 - gather[server], gather[server])
            w = mixing_matrix(n, server, arrived, gathered)
            kept += np.delete(chance, server).prod() * np.trace(w) / n
    assert theory.kept(n, rate, gather_rate) == pytest.approx((kept - 1) / (n - 1))


SETTLING = 4, 0.3, 0.1  # Workers, drop rate, learning rate.


@jax.jit
def squared_distances(bias, variance):
    """Those after each of many steps by gradients `bias`, `[workers, size]`, and noise."""
    n, drop_rate, learning_rate = SETTLING
    noise_key, drop_key = jax.random.split(jax.random.key(0))

    def one_worker(params, grads, step):
        delivery, _ = rps.draw_exchange(rps.Bernoulli(drop_rate), (), drop_key, step, "workers")
        return rps.average_models(params - learning_rate * grads, delivery, "workers")

    def step(params, step):
        noise = jax.random.normal(jax.random.fold_in(noise_key, step), bias.shape)
        grads = bias + noise * (variance / bias.shape[1]) ** 0.5
        params = jax.vmap(one_worker, (0, 0, None), axis_name="workers")(params, grads, step)
        return params, ((params - params.mean(0, keepdims=True)) ** 2).sum() / n

    return jax.lax.scan(step, bias * 0, jax.numpy.arange(1600))[1]


@pytest.mark.parametrize(("variance", "dissimilarity"), [(1.0, 0.0), (0.0, 1.0), (0.5, 2.0)])
def test_workers_settle_at_the_predicted_consensus_distance(variance, dissimilarity):
    n, *_ = SETTLING
    bias = np.random.default_rng(0).normal(size=(n, 400)).astype(np.float32)
    bias -= bias.mean(0)
    bias *= (dissimilarity * n / (bias**2).sum()) ** 0.5

    squared = squared_distances(bias, variance)
    predicted = theory.steady_consensus_distance(*SETTLING, variance, dissimilarity)
    # Batch means of 30 steps, many times the memory of the process, are as good as independent.
    batches = np.asarray(squared[100:]).reshape(50, -1).mean(1)
    error = batches.std(ddof=1) / len(batches) ** 0.5
    assert abs(batches.mean() - predicted**2) < 5 * error
    assert error < 0.05 * predicted**2


def test_nothing_is_left_where_nothing_is_dropped():
    """Whatever rounding leaves of a contraction of 0."""
    for n in range(1, 130):
        assert theory.steady_consensus_distance(n, 0.0, 0.1, 1.0) < 1e-8


def test_nothing_settles_where_nothing_is_averaged():
    assert theory.steady_consensus_distance(4, 1.0, 0.1, 1.0) == float("inf")
    assert theory.steady_consensus_distance(1, 0.5, 0.1, 1.0, 1.0) == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: theory.link_alphas(np.zeros((2, 3))), r"shape \(2, 3\): expected \(2, 2\)"),
        (lambda: theory.link_alphas(np.full((2, 2), 1.1)), "expected probabilities in"),
        (lambda: theory.whole_block(0.1, 0), "packets=0: expected at least 1"),
        (lambda: theory.whole_block(-0.1, 1), "drop_rate=-0.1: expected a probability"),
        (lambda: theory.whole_block(0.9, 4, 2.0), "mean_burst=2.0: expected at least 9, for"),
        (lambda: theory.whole_block(0.1, 4, 2, 0.2), r"drop_rate=0.1: expected a number in \[0.2"),
        (lambda: theory.whole_block(0.1, 4, 2, 0.2, 0.1), "bad_drop_rate=0.1: expected more than"),
        (lambda: theory.largest_drop_rate(4, 1.5), "tolerance=1.5: expected a number"),
        (lambda: theory.steady_consensus_distance(4, 0.1, 0.1, -1), "gradient_variance=-1"),
    ],
)
def test_bad_arguments_raise(call, message):
    with pytest.raises(ValueError, match=message):
        call()
