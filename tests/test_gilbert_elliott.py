"""Bursts: their share, their length, and where they are independent of each other.

Five standard errors everywhere: a check fails by chance once in 1.7 million keys.
"""

import jax
import numpy as np
import pytest
from many_exchanges import between_workers, drops_of

import rps_jax as rps

RUNS = 3000  # One for all, so that they share their programs.


def check_mean(sample, expected, variance=None):
    """Checks the mean of independent numbers."""
    variance = np.var(sample) if variance is None else variance
    assert abs(np.mean(sample) - expected) < 5 * (variance / np.size(sample)) ** 0.5


@pytest.mark.parametrize(("rates", "packets"), [((0.0, 1.0), None), ((0.05, 0.8), 3)])
def test_the_drop_rate_holds_at_every_exchange_and_packet(rates, packets):
    good, bad = rates
    channel = rps.GilbertElliott(0.3, 4, packets, good, bad)
    drops = between_workers(drops_of(channel, 4, steps=3, runs=RUNS))
    for step in range(3):
        for packet in range(packets or 1):
            check_mean(drops[:, step, ..., packet], 0.3, 0.3 * 0.7)


@pytest.mark.parametrize(("packets", "unit"), [(None, "packets"), (16, "packets")])
def test_bursts_have_the_stated_mean_and_are_geometric(packets, unit):
    mean_burst = 4.0
    channel = rps.GilbertElliott(0.2, mean_burst, packets, burst_unit=unit)
    drops = between_workers(drops_of(channel, 6, steps=1600 // (packets or 1)))[0]
    sequences = np.moveaxis(drops, 0, 2).reshape(2 * 30, -1)  # Of packets, across exchanges.
    lengths = np.concatenate([lengths_of_bursts(one) for one in sequences])
    check_mean(lengths, mean_burst)
    for least in (2, 4, 8):
        tail = (1 - 1 / mean_burst) ** (least - 1)
        check_mean(lengths >= least, tail, tail * (1 - tail))
    gaps = np.concatenate([lengths_of_bursts(~one) for one in sequences])
    check_mean(gaps, mean_burst * 0.8 / 0.2)


def lengths_of_bursts(dropped):
    """Returns the lengths of the runs of True that begin and end inside."""
    edges = np.flatnonzero(np.diff(dropped.astype(int)))
    if not len(edges):
        return edges
    edges = edges[1:] if dropped[0] else edges
    edges = edges[: len(edges) // 2 * 2].reshape(-1, 2)
    return edges[:, 1] - edges[:, 0]


def test_bursts_counted_in_exchanges_take_all_packets_of_a_message():
    channel = rps.GilbertElliott(0.3, 4, packets=8, burst_unit="exchanges")
    drops = between_workers(drops_of(channel, 5, steps=1000))[0]
    assert (drops == drops[..., :1]).all()
    stays = drops[1:, ..., 0][drops[:-1, ..., 0]]
    check_mean(stays, 1 - 1 / 4, 3 / 16)


def test_links_and_phases_are_independent_of_each_other():
    drops = between_workers(drops_of(rps.GilbertElliott(0.3, 6), 4, steps=3, runs=RUNS))[:, 1]
    centred = (drops.reshape(RUNS, -1) - 0.3) / 0.21**0.5
    correlation = centred.T @ centred / RUNS
    assert np.abs(correlation[~np.eye(len(correlation), dtype=bool)]).max() < 5.5 / RUNS**0.5


def test_the_shortest_bursts_are_independent_drops():
    share = 0.25
    channel = rps.GilbertElliott(share, 1 / (1 - share))
    drops = between_workers(drops_of(channel, 6, steps=1600))[0]
    after = drops[1:][drops[:-1]]
    check_mean(after, share, share * (1 - share))


@pytest.mark.parametrize(
    ("rate", "dropped"), [(0.0, False), pytest.param(1.0, True, marks=pytest.mark.long)]
)
def test_all_or_nothing_is_dropped(rate, dropped):
    drops = between_workers(drops_of(rps.GilbertElliott(rate, 3, packets=3), 4, steps=3, runs=RUNS))
    assert (drops == dropped).all()


def test_traced_numbers_that_cannot_be_keep_the_drop_rate():
    drops = jax.jit(
        lambda rate: rps.GilbertElliott(rate, 1.5).sample(
            rps.GilbertElliott(0.1).init(2000), jax.random.key(0), 0, 2000
        )[0]
    )(0.9)
    check_mean(~drops.sent[1:], 0.9, 0.09)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"drop_rate": 1.5}, r"drop_rate=1.5: expected a probability in \[0, 1\]"),
        ({"drop_rate": None}, "drop_rate=None: expected a probability"),
        ({"mean_burst": 0.5}, "mean_burst=0.5: expected at least 1"),
        ({"drop_rate": 0.9}, r"mean_burst=8.0: expected at least 9, for drop_rate=0.9 keeps"),
        ({"drop_rate": np.array([0.1, 0.9])}, "mean_burst=8.0: expected at least 9, for drop_rate"),
        ({"good_drop_rate": 0.2}, r"drop_rate=0.1: expected a number in \[0.2, 1.0\]"),
        ({"bad_drop_rate": 0.05}, r"drop_rate=0.1: expected a number in \[0.0, 0.05\]"),
        ({"bad_drop_rate": 0.0}, "bad_drop_rate=0.0: expected more than good_drop_rate=0.0"),
        ({"packets": 0}, "packets=0: expected None or an integer"),
        ({"burst_unit": "bytes"}, "burst_unit='bytes': expected packets or exchanges"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        rps.GilbertElliott(**{"drop_rate": 0.1, "mean_burst": 8.0} | options)
