"""What arrived on each link, as numbers for lines of metrics."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rps_jax.links import BURST_BINS, LinkCounts

_MOST_LISTED = 32
"""Most rows of a list in a line of metrics."""
BY_LINK, ARRIVALS, BURSTS = "delivered_by_link", "arrivals", "bursts"
"""The lists of links in a line of metrics."""


class LinkStatistics(NamedTuple):
    """What arrived and what did not.

    Attributes:
        delivered: float `[2, num_workers, num_workers]`, the share of packets that arrived, by
            phase, source and destination; NaN between a worker and itself, where nobody knows, and
            where nothing was sent.
        arrivals: int `[num_workers + 1]`, of how many packets of blocks k workers' arrived at their
            server, its own included.
        bursts: int `[BURST_BINS]`, how many bursts have ended, of both phases: bin b counts those
            of 2^b to 2^(b + 1) - 1 packets dropped in a row on a link, across exchanges.
        mean_burst: packets dropped in a row on average, in the exchanges that were counted.
    """

    delivered: np.ndarray
    arrivals: np.ndarray
    bursts: np.ndarray
    mean_burst: float

    @classmethod
    def of(cls, counts: Mapping[int, LinkCounts], num_workers: int) -> "LinkStatistics":
        """Returns what some workers have counted, by their numbers."""
        delivered = np.full((2, num_workers, num_workers), np.nan)
        for worker, counted in counts.items():
            sent = np.asarray(counted.delivered[:, [worker]])
            share = counted.delivered / np.maximum(sent, 1)
            delivered[:, :, worker] = np.where(sent > 0, share, np.nan)
            delivered[:, worker, worker] = np.nan
        dropped = begun = 0
        for worker, counted in counts.items():
            arrived = np.asarray(counted.delivered, np.int64)
            dropped += int((arrived[:, [worker]] - arrived).sum())
            begun += int(np.sum(counted.bursts) + np.count_nonzero(counted.dropping))
        return cls(
            delivered,
            arrivals=_total([counted.arrivals for counted in counts.values()], num_workers + 1),
            bursts=_total([counted.bursts for counted in counts.values()], BURST_BINS),
            mean_burst=dropped / max(begun, 1),
        )

    def in_short(self) -> dict[str, float]:
        """Returns what is in every line of metrics."""
        known = self.delivered[np.isfinite(self.delivered)]
        reached = np.flatnonzero(self.arrivals).tolist()
        return {
            "delivered_worst_link": round(float(known.min(initial=1.0)), 6),
            "fewest_arrivals": min(reached, default=len(self.arrivals) - 1),
            "mean_burst_length": round(self.mean_burst, 4),
        }

    def in_full(self) -> dict[str, Any]:
        """Returns what is in lines at the end of an epoch, too: lists, shortened if need be."""
        starts = group_starts(len(self.arrivals))
        return {
            BY_LINK: as_list(self.delivered, axes=(1, 2)),
            ARRIVALS: np.add.reduceat(self.arrivals, starts).tolist(),
            BURSTS: self.bursts.tolist(),
        }


def _total(counts: Sequence[Any], length: int) -> np.ndarray:
    return sum(map(np.asarray, counts), start=np.zeros(length, np.int64))


def group_starts(length: int) -> np.ndarray:
    """Returns where the groups begin that a list is made of: one element each, if it is short."""
    return np.arange(0, length, -(-length // _MOST_LISTED))


def as_list(values: np.ndarray, axes: tuple[int, ...] = (0,)) -> list[Any]:
    """Returns JSON values of an array: numbers of four digits, and null for NaN.

    Args:
        values: The array.
        axes: Those that are shortened to means of groups where they are long.
    """
    known = np.isfinite(values)
    total, count = np.where(known, values, 0.0), known.astype(np.int64)
    for axis in axes:
        starts = group_starts(values.shape[axis])
        total = np.add.reduceat(total, starts, axis=axis)
        count = np.add.reduceat(count, starts, axis=axis)
    means = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    listed: list[Any] = np.vectorize(_as_json, otypes=[object])(means).tolist()
    return listed


def _as_json(value: float) -> float | None:
    return None if np.isnan(value) else float(f"{value:.4g}")


def lists_of_links(line: Mapping[str, Any], num_workers: int) -> dict[str, np.ndarray] | None:
    """Returns the lists of links in a line of metrics, with NaN for null.

    Args:
        line: Of a run's metrics.
        num_workers: How many workers there are.

    Returns:
        By name, `BY_LINK`, `ARRIVALS` and `BURSTS`; None if the line has none, is damaged, or is of
        another number of workers.
    """
    rows, bins = len(group_starts(num_workers)), len(group_starts(num_workers + 1))
    shapes = {BY_LINK: (2, rows, rows), ARRIVALS: (bins,), BURSTS: (BURST_BINS,)}
    try:
        lists = {name: np.array(line[name], float) for name in shapes}
    except (KeyError, TypeError, ValueError):
        return None
    return lists if {name: array.shape for name, array in lists.items()} == shapes else None
