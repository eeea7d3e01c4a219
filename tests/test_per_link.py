"""Drops at a rate of its own on each link. Five standard errors everywhere."""

import numpy as np
import pytest
from many_exchanges import drops_of

import rps_jax as rps


def check_rates(drops, expected, packets=1):
    """Checks the frequency of drops of each link, `[steps, phase, source, destination, packet]`."""
    n = drops.shape[2]
    count = drops.shape[0] * packets
    expected = np.where(np.eye(n, dtype=bool), 0, expected)
    margin = 5 * (expected * (1 - expected) / count) ** 0.5 + 1e-7
    assert (np.abs(drops.mean((0, 4)) - expected) <= margin).all()


@pytest.mark.parametrize("phases", [1, 2])
@pytest.mark.parametrize("packets", [None, 3])
def test_each_link_has_its_rate_in_each_phase(phases, packets):
    n = 4
    rates = np.random.default_rng(0).random((2, n, n)).astype(np.float32)
    rates[:, 0, 1], rates[:, 1, 0] = 0, 1
    rates = rates if phases == 2 else rates[0]
    drops = drops_of(rps.PerLink(rates, packets), n, steps=2000)[0]
    check_rates(drops, rates, packets or 1)
    after = drops[1:][drops[:-1]]  # Independent from exchange to exchange.
    weights = np.where(np.eye(n, dtype=bool), 0, rates) * np.ones((2, 1, 1))
    mean = (weights**2).sum() / weights.sum()
    assert abs(after.mean() - mean) < 5 * (0.25 / after.size) ** 0.5


def test_one_bad_link_is_bad_in_one_direction():
    rates = rps.PerLink.one_bad_link(4, 1, 3, 0.5, others=0.1).drop_rates
    assert rates[1, 3] == 0.5
    assert (np.delete(rates.ravel(), 1 * 4 + 3) == np.float32(0.1)).all()


def test_one_bad_worker_is_bad_in_both_directions():
    drops = drops_of(rps.PerLink.one_bad_worker(4, 2, 1.0, packets=2), 4, steps=3)
    expected = np.zeros((4, 4), bool)
    expected[2], expected[:, 2], expected[2, 2] = True, True, False
    assert (drops == expected[:, :, None]).all()


def test_racks_are_good_inside_and_bad_between():
    drops = drops_of(rps.PerLink.racks([2, 1], within=0.0, between=1.0), 3, steps=2)[
        0, 0, 0, ..., 0
    ]
    np.testing.assert_array_equal(drops, [[0, 0, 1], [0, 0, 1], [1, 1, 0]])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rps.PerLink(np.full((3, 3), 1.5)), "drop_rates=1.5: expected a probability"),
        (lambda: rps.PerLink(np.full((3, 3), np.nan)), "drop_rates=nan: expected a probability"),
        (lambda: rps.PerLink(np.zeros((2, 3))), r"drop_rates has shape \(2, 3\): expected \(num_w"),
        (lambda: rps.PerLink(np.zeros((3, 4, 4))), r"drop_rates has shape \(3, 4, 4\)"),
        (lambda: rps.PerLink(0.1), r"drop_rates has shape \(\)"),
        (lambda: rps.PerLink(np.zeros((3, 3)), 0), "packets=0: expected None or"),
        (
            lambda: drops_of(rps.PerLink(np.zeros((3, 3))), 4, 1),
            "num_workers=4: expected 3, the rows of drop_rates",
        ),
        (
            lambda: rps.PerLink.one_bad_link(3, 0, 3, 0.1),
            "destination=3: expected a worker",
        ),
        (lambda: rps.PerLink.one_bad_link(3, -1, 0, 0.1), "source=-1: expected a worker, 0 to 2"),
        (lambda: rps.PerLink.one_bad_worker(3, -1, 0.1), "worker=-1: expected a worker, 0 to 2"),
        (lambda: rps.PerLink.racks([], 0, 1), r"sizes=\[\]: expected the number of workers"),
        (lambda: rps.PerLink.racks([2, 0], 0, 1), r"sizes=\[2 0\]: expected at least 1 worker"),
    ],
)
def test_bad_arguments_raise(make, message):
    with pytest.raises(ValueError, match=message):
        make()
