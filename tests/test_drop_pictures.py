"""What a trace amounts to, and its picture."""

from pathlib import Path

import numpy as np

import rps_jax as rps
from launch.reports.drops import count_drops, draw_drops


def trace_of(arrived: np.ndarray) -> rps.Trace:
    return rps.Trace(np.packbits(arrived, axis=-1), arrived.shape[-1])


def test_what_is_counted_is_what_is_in_the_trace() -> None:
    n, packets, exchanges = 3, 5, 40
    rng = np.random.default_rng(0)
    arrived = rng.random((exchanges, 2, n, n, packets)) < 0.6
    counted = count_drops(trace_of(arrived))
    assert counted.exchanges == exchanges
    apart = ~np.eye(n, dtype=bool)
    np.testing.assert_allclose(counted.delivered[:, apart], arrived.mean((0, 4))[:, apart])
    assert np.isnan(counted.delivered[:, ~apart]).all()

    arrived[:, :, np.arange(n), np.arange(n)] = True
    at_server = arrived[:, 0].sum(axis=1)
    assert counted.arrivals.tolist() == [(at_server == k).sum() for k in range(n + 1)]

    lengths = np.arange(len(counted.bursts))
    assert (lengths * counted.bursts).sum() == (~arrived).sum()
    begins = 0
    for phase, source, destination in np.ndindex(2, n, n):
        dropped = ~arrived[:, phase, source, destination].ravel()
        begins += dropped[0] + (dropped[1:] & ~dropped[:-1]).sum()
    assert counted.bursts.sum() == begins


def test_bursts_go_on_from_exchange_to_exchange() -> None:
    arrived = np.ones((6, 2, 2, 2, 2), bool)
    arrived[2:4, 0, 0, 1] = False
    arrived[4, 0, 0, 1, 0] = False
    assert count_drops(trace_of(arrived)).bursts.tolist() == [0, 0, 0, 0, 0, 1]


def test_a_picture_is_drawn_of_any_trace(tmp_path: Path) -> None:
    for name, n, share in (("some", 4, 0.7), ("none", 3, 0.0), ("all", 3, 2.0), ("alone", 1, 1.0)):
        arrived = np.random.default_rng(1).random((20, 2, n, n, 1)) < share
        draw_drops(trace_of(arrived), "4 workers", tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").stat().st_size > 5000
