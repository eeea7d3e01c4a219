"""Workers that go away and come back. Five standard errors everywhere."""

import jax
import numpy as np
import pytest
from many_exchanges import drops_of

import rps_jax as rps


def away_of(drops):
    """Returns who is away, `[..., worker]`, of drops that nothing else has caused."""
    n = drops.shape[-2]
    away = drops[..., 0].sum(axis=-1) == n - 1
    lost = (away[..., :, None] | away[..., None, :]) & ~np.eye(n, dtype=bool)
    np.testing.assert_array_equal(drops[..., 0], lost)
    assert (away[:, :, 0] == away[:, :, 1]).all()
    return away[:, :, 0]


def test_workers_are_away_for_the_stated_share_and_time():
    share, mean, n, runs = 0.2, 4, 6, 1000
    away = away_of(drops_of(rps.Outage(share, mean), n, steps=4, runs=runs))
    for step in range(4):
        at = away[:, step]
        assert abs(at.mean() - share) < 5 * (share * (1 - share) / at.size) ** 0.5
        correlation = np.corrcoef(at.T)[~np.eye(n, dtype=bool)]
        assert np.abs(correlation).max() < 5 / runs**0.5
    before = away[:, :-1][away[:, :-1]]
    stays = away[:, 1:][away[:, :-1]]
    assert abs(stays.mean() - (1 - 1 / mean)) < 5 * (3 / 16 / before.size) ** 0.5


def test_a_schedule_says_who_is_away_when():
    away = away_of(drops_of(rps.Outage(schedule=[[2, 1, 3], [0, 2, 3]]), 4, steps=4))
    np.testing.assert_array_equal(away[0], [[0, 0, 0, 0], [0, 0, 1, 0], [1, 0, 1, 0], [0, 0, 0, 0]])


@pytest.mark.parametrize(("share", "gone"), [(0.0, False), (1.0, True)])
def test_everybody_is_there_or_away(share, gone):
    drops = drops_of(rps.Outage(share), 3, steps=3)
    assert (drops[..., 0] == (gone & ~np.eye(3, dtype=bool))).all()


def test_the_schedule_may_be_traced():
    @jax.jit
    def sample(schedule):
        channel = rps.Outage(schedule=schedule)
        return channel.sample(channel.init(3), jax.random.key(0), 1, 3)[0].sent

    np.testing.assert_array_equal(sample(np.array([[2, 0, 1]])), [True, True, False])
    np.testing.assert_array_equal(sample(np.array([[0, 0, 1]])), [False, True, True])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rps.Outage(1.5), r"away_rate=1.5: expected a probability in \[0, 1\]"),
        (lambda: rps.Outage(0.1, 0), "mean_outage=0: expected at least 1"),
        (lambda: rps.Outage(0.9, 2), "mean_outage=2.0: expected at least 9, for away_rate=0.9"),
        (lambda: rps.Outage(schedule=[[1, 2]]), r"schedule has shape \(1, 2\)"),
        (lambda: rps.Outage(schedule=[[1.0, 2, 3]]), "dtype float64: expected int32"),
        (lambda: rps.Outage(schedule=[[0, 9, 3]]), r"schedule has \[0, 9, 3\]: expected the first"),
        (lambda: rps.Outage(schedule=[[-1, 2, 3]]), "schedule has -1: expected numbers of at lea"),
    ],
)
def test_bad_arguments_raise(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_worker_that_is_not_there_is_refused():
    channel = rps.Outage(schedule=[[4, 0, 1]])
    with pytest.raises(ValueError, match="schedule has worker 4: expected 0 to 3"):
        jax.eval_shape(lambda key: channel.sample(channel.init(4), key, 0, 4), jax.random.key(0))
