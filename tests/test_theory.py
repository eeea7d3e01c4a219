"""The closed forms, against enumeration of every outcome and against real exchanges."""

import numpy as np
import pytest
import reference

import launch.theory
import rps_jax as rps
from rps_jax import theory

# n, p, alpha_1, alpha_2: derived by hand and rounded as shown.
TABLE = [
    (2, 0.1, 0.145, 0.1125),
    (3, 0.3, 0.356, 0.168466667),
    (5, 0.2, 0.212416, 0.06943232),
    (16, 0.01, 0.010042088, 0.001240911),
    (16, 0.1, 0.100462963, 0.011356481),
    (64, 0.1, 0.100027557, 0.002817805),
]


def mixing_matrix(num_workers, server, arrived, gathered):
    """W of one outcome, X' = V W: column i is what worker i holds afterwards."""
    mixing = np.eye(num_workers)
    average = np.where(arrived, 1 / sum(arrived), 0.0)
    for worker in range(num_workers):
        if gathered[worker]:
            mixing[:, worker] = average
    assert gathered[server]
    assert arrived[server]
    return mixing


def enumerated(num_workers, drop_rate, gather_rate):
    """E[W W^T] and E[W A W^T] over every outcome and every server, and the same of W - I."""
    n = num_workers
    mean = np.full((n, n), 1 / n)
    spread, mixed, moved = np.zeros((n, n)), np.zeros((n, n)), np.zeros((n, n))
    for probability, server, arrived, gathered in reference.outcomes(n, drop_rate, gather_rate):
        w = mixing_matrix(n, server, arrived, gathered)
        spread += probability * w @ w.T
        mixed += probability * w @ mean @ w.T
        moved += probability * (w - np.eye(n)) @ mean @ (w - np.eye(n)).T
    return spread, mixed, moved


@pytest.mark.parametrize("n", [2, 3, 4, 5])
@pytest.mark.parametrize(
    ("drop_rate", "gather_rate"), [(0.0, 0.0), (0.3, 0.3), (0.2, 0.7), (1.0, 1.0), (1.0, 0.4)]
)
def test_alphas_equal_the_enumeration_of_every_outcome(n, drop_rate, gather_rate):
    spread, mixed, moved = enumerated(n, drop_rate, gather_rate)
    alpha_1, alpha_2 = theory.alphas(n, drop_rate, gather_rate)
    identity, mean = np.eye(n), np.full((n, n), 1 / n)
    np.testing.assert_allclose(spread, alpha_1 * identity + (1 - alpha_1) * mean, atol=1e-12)
    np.testing.assert_allclose(mixed, alpha_2 * identity + (1 - alpha_2) * mean, atol=1e-12)
    # The drift of the mean, for deviations from it.
    np.testing.assert_allclose(moved, alpha_2 * (identity - mean), atol=1e-12)


@pytest.mark.parametrize(("n", "p", "alpha_1", "alpha_2"), TABLE)
def test_alphas_equal_the_derived_values(n, p, alpha_1, alpha_2):
    np.testing.assert_allclose(theory.alphas(n, p), (alpha_1, alpha_2), rtol=0, atol=5e-10)
    assert theory.contraction(n, p) == pytest.approx(alpha_1 - alpha_2, abs=1e-9)
    assert theory.drift(n, p) == pytest.approx(alpha_2, abs=5e-10)


def test_limits():
    assert theory.alphas(1, 0.5) == (0.0, 0.0)
    np.testing.assert_allclose(theory.alphas(16, 0.0), (0, 0), atol=1e-15)
    # Nothing arrives: nobody moves, and the spread stays whole.
    np.testing.assert_allclose(theory.alphas(16, 1.0), (1, 0), atol=1e-15)
    # The price of loss shrinks with the number of servers: alpha_2 ~ 2 p (1 - p) / n.
    p = 0.1
    assert theory.drift(10_000, p) * 10_000 == pytest.approx(2 * p * (1 - p), rel=1e-2)


@pytest.mark.parametrize(
    ("n", "channel", "expected"),
    [
        pytest.param(2, rps.Bernoulli(0.1), theory.alphas(2, 0.1), marks=pytest.mark.long),
        pytest.param(5, rps.Bernoulli(0.5), theory.alphas(5, 0.5), marks=pytest.mark.long),
        (16, rps.Bernoulli(0.1), theory.alphas(16, 0.1)),
        pytest.param(
            16, rps.Bernoulli(0.1, packets=2), theory.alphas(16, 0.1), marks=pytest.mark.long
        ),
        (7, rps.Bernoulli(0.05, 0.4), theory.alphas(7, 0.05, 0.4)),
    ],
)
def test_real_exchanges_contract_and_drift_as_predicted(n, channel, expected):
    """Within five standard errors: fails by chance once in 1.7 million keys."""
    # The fewer workers, the more an exchange varies.
    measured = theory.measure(channel, n, num_exchanges=20_000 // n, seed=3)
    contraction = expected.alpha_1 - expected.alpha_2
    assert abs(measured.means.contraction - contraction) < 5 * measured.errors.contraction
    assert abs(measured.means.drift - expected.alpha_2) < 5 * measured.errors.drift
    # And the law is held to something: the error is small beside what it measures.
    assert measured.errors.contraction < 0.05 * contraction


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: theory.alphas(0, 0.1), "num_workers=0: expected at least 1"),
        (lambda: theory.alphas(4, 1.1), r"drop_rate=1.1: expected a probability in \[0, 1\]"),
        (lambda: theory.alphas(4, 0.1, -1), "all_gather_drop_rate=-1: expected a probability"),
        (lambda: theory.measure(rps.Reliable(), 1), "num_workers=1: expected at least 2"),
        (lambda: theory.rounds_until_all(1.0, 4), "drop_rate=1.0: expected a probability in"),
        (lambda: theory.rounds_until_all(0.1, 0), "packets=0: expected at least 1"),
    ],
)
def test_bad_arguments_raise(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_command_prints_95_percent_confidence_intervals(capsys):
    flags = ["--num-workers", "4", "--drop-rates", "0.3", "--num-exchanges", "5"]
    assert launch.theory.main(flags) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    found = rps.theory.measure(rps.Bernoulli(0.3), 4, 5, launch.theory.TheoryConfig().seed)
    errors = np.array([found.errors.contraction, found.errors.drift])
    printed = [float(part.split()[0]) for part in lines[-1].split("±")[1:]]
    np.testing.assert_allclose(printed, 2.776445 * errors, atol=1e-6)  # Student's t, 4 degrees


@pytest.mark.parametrize(("rate", "packets"), [(0.0, 5), (0.1, 1), (0.3, 4), (0.1, 3000)])
def test_rounds_until_all_are_the_mean_of_the_largest_geometric_variable(rate, packets):
    rng = np.random.default_rng(0)
    found = rng.geometric(1 - rate, (2000, packets)).max(1)
    error = found.std() / 2000**0.5
    assert abs(theory.rounds_until_all(rate, packets) - found.mean()) <= 4 * error
