"""Closed forms for policies and for bursts over exchanges, against enumeration and exchanges."""

import itertools

import numpy as np
import pytest
import reference

import rps_jax as rps
from rps_jax import theory

POLICIES = [
    (server, on_miss)
    for server in ("received", "zero-filled", "unbiased")
    for on_miss in ("own", "zero")
]


def options(server, on_miss, rate=0.3):
    return {
        "server": server,
        "on_miss": on_miss,
        "server_drop_rate": rate if server == "unbiased" else None,
    }


def enumerated(n, drop_rate, gather_rate, server, on_miss, server_drop_rate):
    """What exchanges do on average, by the definitions, over every outcome and every server."""
    mean, kept = np.full((n, n), 1 / n), np.zeros((n, n))
    spread, moved = np.zeros((n, n)), np.zeros((n, n))
    for probability, me, arrived, gathered in reference.outcomes(n, drop_rate, gather_rate):
        weights = np.array(arrived, float)
        if server == "unbiased":
            weights[np.arange(n) != me] /= 1 - server_drop_rate
        weights /= sum(arrived) if server == "received" else n
        missed = np.eye(n) if on_miss == "own" else np.zeros((n, n))
        w = np.where(gathered, weights[:, None], missed)
        apart, move = w - w @ mean, (w - np.eye(n)) @ mean
        spread += probability * apart @ apart.T
        moved += probability * move @ move.T
        kept += probability * w
    one = np.ones(n)
    deviations = np.eye(n) - mean
    of_both = [
        (np.trace(x @ deviations) / max(n - 1, 1), one @ x @ one / n) for x in (spread, moved, kept)
    ]
    (contraction, equal_spread), (drift, equal_drift), (own, equal) = of_both
    return theory.Moments(contraction, drift, own, equal_spread, equal_drift, equal)


@pytest.mark.parametrize("n", [2, 3, 4])
@pytest.mark.parametrize(("server", "on_miss"), POLICIES)
def test_moments_equal_the_enumeration_of_every_outcome(n, server, on_miss):
    for rates in ((0.3, 0.3), (0.2, 0.7), (0.0, 1.0), (1.0, 0.4)):
        policy = options(server, on_miss)
        found = theory.moments(n, *rates, **policy)
        np.testing.assert_allclose(found, enumerated(n, *rates, **policy), atol=1e-12)


@pytest.mark.parametrize("rates", [(0.1, None), (0.4, 0.05)])
def test_moments_of_rps_are_those_of_alphas(rates):
    found, (alpha_1, alpha_2) = theory.moments(16, *rates), theory.alphas(16, *rates)
    expected = (alpha_1 - alpha_2, alpha_2, theory.kept(16, *rates), 0, 0, 1)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    np.testing.assert_allclose(theory.moments(1, *rates), (0, 0, 0, 0, 0, 1), atol=1e-12)


@pytest.mark.parametrize(
    ("server", "on_miss"),
    [
        pytest.param(*policy, marks=() if policy == ("unbiased", "own") else pytest.mark.long)
        for policy in POLICIES
    ],
)
def test_real_exchanges_of_many_workers_do_what_moments_say(server, on_miss):
    """Within five standard errors: fails by chance once in 1.7 million keys."""
    n, rates, policy = 24, (0.3, 0.1), options(server, on_miss)
    found = theory.measure(rps.Bernoulli(*rates), n, 300, rule="gradient-averaging", **policy)
    expected = np.array(theory.moments(n, *rates, **policy))
    error = np.abs(np.array(found.means) - expected)
    assert (error <= 5 * np.array(found.errors) + 1e-6).all()
    assert found.errors.contraction < 0.1 * expected[0]


def test_a_rule_that_needs_a_reliable_network_is_measured_on_one():
    found = theory.measure(rps.Bernoulli(0.9), 2, 2, rule="all-reduce")
    np.testing.assert_allclose(found.means, theory.moments(2, 0.0), atol=1e-6)


def test_links_that_never_recover_are_measured_from_many_beginnings():
    """Within five standard errors; the exchanges after one beginning are all alike."""
    exact = theory.contraction(2, 0.3)
    found = theory.measure(rps.GilbertElliott(0.3, 1e6), 2, 200, assignment="fixed")
    assert abs(found.means.contraction - exact) < 5 * found.errors.contraction
    assert found.errors.contraction < 0.2 * exact


@pytest.mark.long
@pytest.mark.parametrize(
    "channel",
    [
        rps.GilbertElliott(0.3, 1 / 0.7),
        rps.Bernoulli(0.3),
    ],
)
def test_standard_errors_are_of_all_exchanges_whatever_divides_them(channel):
    one, other = (theory.measure(channel, 2, number).errors for number in (199, 200))
    assert one.contraction == pytest.approx(other.contraction, rel=0.3)


INSIDE = {"good_drop_rate": 0.1, "bad_drop_rate": 0.8}


@pytest.mark.parametrize(
    ("n", "rate", "burst", "assignment", "inside"),
    [
        (4, 0.3, 4.0, "fixed", {}),
        pytest.param(8, 0.3, 4.0, "fixed", INSIDE, marks=pytest.mark.long),
        pytest.param(2, 0.3, 3.0, "random", {}, marks=pytest.mark.long),
        pytest.param(3, 0.3, 2.0, "random", {}, marks=pytest.mark.long),
        pytest.param(3, 0.3, 4.0, "random", INSIDE, marks=pytest.mark.long),
    ],
)
def test_bursts_over_exchanges_contract_as_their_chain_says(n, rate, burst, assignment, inside):
    """Within five standard errors: fails by chance once in 1.7 million keys."""
    *_, exact = theory.burst_contractions(n, rate, burst, 2, assignment, **inside)
    found = theory.measure(
        rps.GilbertElliott(rate, burst, **inside), n, 1000, assignment=assignment, in_a_row=2
    )
    assert abs(found.means.contraction - exact) < 5 * found.errors.contraction
    assert found.errors.contraction < 0.15 * exact


@pytest.mark.parametrize(
    ("n", "rate", "burst", "good", "bad"),
    [(2, 0.3, 2.0, 0, 1), (3, 0.2, 5.0, 0, 1), (2, 0.3, 5.0, 0, 0.6), (3, 0.3, 5.0, 0.1, 0.7)],
)
def test_bursts_equal_the_enumeration_of_all_histories(n, rate, burst, good, bad):
    share = (rate - good) / (bad - good)
    turns_bad = share / (1 - share) / burst
    chain = np.array([[1 - turns_bad, turns_bad], [1 / burst, 1 - 1 / burst]])
    # What one link does in two exchanges, whatever its states: 0 if it delivers, 1 if it drops.
    does = np.array([[1 - good, good], [1 - bad, bad]])
    twice = np.einsum("s,st,sa,tb->ab", [1 - share, share], chain, does, does)
    outcomes = list(itertools.product((0, 1), repeat=2 * (n - 1)))
    left = 0.0
    for one, two in itertools.product(outcomes, outcomes):
        probability = np.prod([twice[a, b] for a, b in zip(one, two, strict=True)])
        mixed = np.eye(n) - 1 / n
        for dropped in (one, two):
            links = ~np.array(dropped, bool).reshape(2, -1)
            arrived, gathered = np.insert(links, 0, True, axis=1)
            mixed = mixed @ np.where(gathered, (arrived / arrived.sum())[:, None], np.eye(n))
        left += probability * ((mixed - mixed.mean(1, keepdims=True)) ** 2).sum() / (n - 1)
    found = theory.burst_contractions(n, rate, burst, 2, "fixed", good, bad)
    assert found[1] == pytest.approx(left)


def test_the_shortest_bursts_are_independent_drops():
    found = theory.burst_contractions(3, 0.2, 1 / 0.8, 3, "random")
    np.testing.assert_allclose(found, theory.contraction(3, 0.2) ** np.arange(1, 4))
    assert theory.burst_contractions(8, 0.2, 5, 1)[0] == pytest.approx(theory.contraction(8, 0.2))
    # Of rates inside the states, where links are bad for a quarter of the time.
    found = theory.burst_contractions(3, 0.3, 1 / 0.75, 3, "random", 0.2, 0.6)
    np.testing.assert_allclose(found, theory.contraction(3, 0.3) ** np.arange(1, 4))
    assert theory.burst_limits(0.3, 1 / 0.75, 3, "fixed", 0.2, 0.6) == pytest.approx(
        theory.burst_limits(0.3, 8, 3, "random", 0.1, 0.6)
    )


def test_bursts_of_many_workers_tend_to_their_limits():
    limits = theory.burst_limits(0.1, 8, 3)
    exact = [theory.burst_contractions(n, 0.1, 8, 3)[2] for n in (3, 5, 7)]
    assert (np.diff([*exact, limits[2]]) > 0).all()
    assert theory.burst_limits(0.1, 8, 2, "random") == pytest.approx([0.1, 0.01])


@pytest.mark.long
@pytest.mark.parametrize("inside", [{}, {"good_drop_rate": 0.03, "bad_drop_rate": 0.6}])
def test_bursts_of_very_many_workers_are_near_their_limits(inside):
    limits = theory.burst_limits(0.1, 8, 3, **inside)
    channel = rps.GilbertElliott(0.1, 8, **inside)
    found = theory.measure(channel, 64, 100, assignment="fixed", in_a_row=3)
    assert found.means.contraction == pytest.approx(limits[2], rel=0.1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: theory.moments(4, 0.1, server="stale"), "expected policies without memory"),
        (lambda: theory.moments(4, 0.1, on_miss="stale"), "expected policies without memory"),
        (lambda: theory.moments(4, 0.1, server="unbiased"), "server_drop_rate=None"),
        (
            lambda: theory.moments(4, 0.1, server="unbiased", server_drop_rate=1.0),
            r"server_drop_rate=1.0: expected a number in \[0, 1\)",
        ),
        (lambda: theory.moments(4, 1.5), "drop_rate=1.5: expected a probability"),
        (lambda: theory.moments(0, 0.5), "num_workers=0: expected at least 1"),
        (lambda: theory.burst_limits(0.1, 8, 0), "exchanges=0: expected at least 1"),
        (lambda: theory.burst_limits(0.1, 8, -3, "random"), "exchanges=-3: expected at least 1"),
        (
            lambda: theory.burst_contractions(9, 0.1, 8, 1),
            "num_workers=9: expected 2 to 8, with fixed servers; theory.measure estimates",
        ),
        (
            lambda: theory.burst_contractions(4, 0.1, 8, 1, "fixed", 0.2),
            r"drop_rate=0.1: expected a number in \[0.2, 1.0\]",
        ),
        (lambda: theory.burst_contractions(4, 0.1, 8, 1, "random"), "num_workers=4: expected 2"),
        (
            lambda: theory.burst_contractions(4, 0.9, 2, 1),
            "mean_burst=2.0: expected at least 9, for",
        ),
        (lambda: theory.burst_contractions(4, 0.1, 8, 0), "exchanges=0: expected at least 1"),
        (lambda: theory.measure(rps.Reliable(), 4, 0), "num_exchanges=0: expected at least 1"),
        (lambda: theory.measure(rps.Reliable(), 4, in_a_row=0), "in_a_row=0: expected at least 1"),
        (lambda: theory.gains(rps.Reliable(), 4, 0), "ages=0: expected at least 1"),
    ],
)
def test_bad_arguments_raise(call, message):
    with pytest.raises(ValueError, match=message):
        call()
