"""What a trace amounts to, what workers count of the same exchanges, and pictures of both."""

from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import rps_jax as rps
from launch.reports.curves import draw_curves
from launch.reports.drops import count_drops, draw_drops
from launch.reports.links import LinkStatistics, as_list
from rps_jax.links import BURST_BINS


def trace_of(arrived: np.ndarray) -> rps.Trace:
    return rps.Trace(np.packbits(arrived, axis=-1), arrived.shape[-1])


def test_what_is_counted_is_what_is_in_the_trace() -> None:
    n, packets, exchanges = 3, 5, 40
    rng = np.random.default_rng(0)
    arrived = rng.random((exchanges, 2, n, n, packets)) < 0.6
    counted = count_drops(trace_of(arrived))
    apart = ~np.eye(n, dtype=bool)
    np.testing.assert_allclose(counted.delivered[:, apart], arrived.mean((0, 4))[:, apart])
    assert np.isnan(counted.delivered[:, ~apart]).all()

    arrived[:, :, np.arange(n), np.arange(n)] = True
    at_server = arrived[:, 0].sum(axis=1)
    assert counted.arrivals.tolist() == [(at_server == k).sum() for k in range(n + 1)]

    begins = 0
    for phase, source, destination in np.ndindex(2, n, n):
        dropped = ~arrived[:, phase, source, destination].ravel()
        begins += dropped[0] + (dropped[1:] & ~dropped[:-1]).sum()
    assert counted.bursts.sum() == begins
    assert counted.mean_burst == (~arrived).sum() / begins


def test_bursts_go_on_from_exchange_to_exchange() -> None:
    arrived = np.ones((6, 2, 2, 2, 2), bool)
    arrived[2:4, 0, 0, 1] = False
    arrived[4, 0, 0, 1, 0] = False
    counted = count_drops(trace_of(arrived))
    assert counted.mean_burst == 5
    assert counted.bursts.tolist() == [0, 0, 1] + [0] * (BURST_BINS - 3)


add = jax.jit(rps.LinkCounts.add)


def counted_by_workers(arrived: np.ndarray) -> dict[int, rps.LinkCounts]:
    """Lets each worker count exchanges `[exchanges, 2, n, n, packets]`, as it sees them."""
    n = arrived.shape[2]
    counted = {worker: rps.LinkCounts.zero(n) for worker in range(n)}
    for reduce_scatter, all_gather in arrived:
        for worker in range(n):
            received, gathered = reduce_scatter[:, worker], all_gather[:, worker]
            delivery = rps.Delivery(reduce_scatter[worker], received, gathered)
            counted[worker] = add(counted[worker], delivery)
    return counted


@pytest.mark.parametrize(
    ("n", "packets", "share"), [(3, 5, 0.6), (4, 1, 0.9), (2, 3, 0.0), (2, 32, 0.3), (2, 80, 0.1)]
)
def test_workers_count_what_a_trace_of_the_same_amounts_to(
    n: int, packets: int, share: float
) -> None:
    arrived = np.random.default_rng(2).random((30, 2, n, n, packets)) < share
    arrived[:, :, np.arange(n), np.arange(n)] = True
    arrived[-1] = True  # It ends all bursts.
    of_trace = count_drops(trace_of(arrived))
    counted = LinkStatistics.of(counted_by_workers(arrived), n)
    for found, expected in zip(counted, of_trace, strict=True):
        np.testing.assert_allclose(found, expected)
    listed = counted.in_full()["delivered_by_link"]
    np.testing.assert_allclose(np.array(listed, float), of_trace.delivered, rtol=1e-3)


def test_bursts_go_on_where_counts_begin_anew() -> None:
    arrived = np.ones((9, 2, 2, 2, 1), bool)
    arrived[:7, 1, 0, 1] = False
    before, after = counted_by_workers(arrived[:4])[1], rps.Delivery(*np.ones((3, 2), bool))
    assert LinkStatistics.of({1: before}, 2).mean_burst == 4
    anew = jax.jit(rps.LinkCounts.begin_anew)(before, np.bool_(True))
    assert LinkStatistics.of({1: anew}, 2).arrivals.sum() == 0
    for reduce_scatter, all_gather in arrived[4:]:
        after = rps.Delivery(reduce_scatter[1], reduce_scatter[:, 1], all_gather[:, 1])
        anew = add(anew, after)
    statistics = LinkStatistics.of({1: anew}, 2)
    assert np.flatnonzero(statistics.bursts) == [2]  # Seven in a row, of which three are counted.
    assert statistics.mean_burst == 3
    assert statistics.in_short() == {
        **{"delivered_worst_link": 0.4, "fewest_arrivals": 2, "mean_burst_length": 3.0}
    }


def test_what_one_worker_does_not_report_is_not_known() -> None:
    arrived = np.random.default_rng(3).random((20, 2, 3, 3, 1)) < 0.5
    counted = counted_by_workers(arrived)
    known = LinkStatistics.of({worker: counted[worker] for worker in (0, 2)}, 3)
    assert np.isnan(known.delivered[:, :, 1]).all()
    assert np.isfinite(known.delivered[:, 1, [0, 2]]).all()
    assert known.in_full()["delivered_by_link"][0][0][1] is None
    nothing = {worker: rps.LinkCounts.zero(3) for worker in range(3)}  # No exchange so far.
    for counts in ({}, nothing):
        short = LinkStatistics.of(counts, 3).in_short()
        assert (short["delivered_worst_link"], short["fewest_arrivals"]) == (1.0, 3)


def test_lists_of_many_workers_are_means_of_groups() -> None:
    values = np.arange(100.0).reshape(100, 1)
    values[1] = np.nan
    listed = as_list(values)
    assert len(listed) == 25
    assert listed[:2] == [[round((0 + 2 + 3) / 3, 3)], [5.5]]


def test_a_picture_is_drawn_of_any_trace(tmp_path: Path) -> None:
    for name, n, share in (("some", 4, 0.7), ("none", 3, 0.0), ("all", 3, 2.0), ("alone", 1, 1.0)):
        arrived = np.random.default_rng(1).random((20, 2, n, n, 1)) < share
        draw_drops(trace_of(arrived), "4 workers", tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").stat().st_size > 5000


@pytest.mark.parametrize("n", [1, 4, pytest.param(40, marks=pytest.mark.long)])
def test_the_picture_of_a_run_has_what_its_lines_have(tmp_path: Path, n: int) -> None:
    arrived = np.random.default_rng(1).random((3, 2, n, n, 1)) < 0.7
    statistics = count_drops(trace_of(arrived))
    line = {"epoch": 1.0, "train_loss": 1.0, "consensus_distance": 0.1, "test_accuracy": 0.5}
    line |= {"mean_model_train_loss": 1.0, "test_loss": 1.0}
    of_others = line | LinkStatistics.of({}, n + 1).in_full()  # Of another number of workers.
    measured = line | statistics.in_full() | {"smallest_distance": 0.0, "largest_distance": 1.0}
    measured |= {"worst_worker_test_accuracy": 0.4, "best_worker_test_accuracy": 0.6}
    sizes = []
    for lines in ([line], [line, of_others | {"epoch": 2.0}, measured | {"epoch": 3.0}]):
        draw_curves(lines, "test_accuracy", n, f"{n} workers", tmp_path / "curves.png")
        with Image.open(tmp_path / "curves.png") as picture:
            sizes.append(picture.size[1])
    assert sizes[0] < sizes[1]
