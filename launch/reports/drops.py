"""The picture of a trace: what arrived on each link and at the servers, and drops in a row."""

from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import rps_jax as rps
from launch.reports.curves import STYLE
from rps_jax.channels.channel import REDUCE_SCATTER

_PHASES = ("reduce-scatter", "all-gather")
_MOST_PACKETS = 2**27
"""How many packets are counted, of the first exchanges: what fits into memory."""


class DropStatistics(NamedTuple):
    """What a trace amounts to.

    Attributes:
        delivered: float `[2, num_workers, num_workers]`, the share of packets that arrived, by
            phase, source and destination; NaN between a worker and itself.
        arrivals: int `[num_workers + 1]`, of how many packets of blocks k workers' arrived at their
            server, its own included.
        bursts: int `[longest + 1]`, how many runs of k packets in a row were dropped on a link,
            across exchanges, both phases.
        exchanges: how many exchanges were counted.
    """

    delivered: np.ndarray
    arrivals: np.ndarray
    bursts: np.ndarray
    exchanges: int


def count_drops(trace: rps.Trace) -> DropStatistics:
    """Counts what arrived and what did not, link by link."""
    n, packets = trace.num_hosts, trace.packets
    exchanges = min(len(trace.arrived), max(1, _MOST_PACKETS // (n * packets)))
    arrived = trace.arrived[:exchanges]
    delivered = np.full((2, n, n), np.nan)
    at_server = np.zeros((exchanges, n, packets), np.uint16)
    bursts = np.zeros(2, np.int64)
    for phase, source in np.ndindex(2, n):
        sent = np.unpackbits(np.asarray(arrived[:, phase, source]), axis=-1, count=packets)
        sent[:, source] = 1
        if phase == REDUCE_SCATTER:
            at_server += sent
        for other in (worker for worker in range(n) if worker != source):
            of_link = sent[:, other].ravel()
            delivered[phase, source, other] = of_link.mean()
            bursts = _add(bursts, np.bincount(_lengths(of_link == 0)))
    arrivals = np.bincount(at_server.ravel(), minlength=n + 1)
    return DropStatistics(delivered, arrivals, bursts, exchanges)


def _lengths(dropped: np.ndarray) -> np.ndarray:
    """Returns the lengths of the runs of True."""
    padded = np.concatenate([[False], dropped, [False]])
    begins, ends = np.flatnonzero(padded[1:] != padded[:-1]).reshape(-1, 2).T
    return ends - begins


def _add(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Returns the sum of two histograms."""
    longest = max(len(one), len(other))
    return np.pad(one, (0, longest - len(one))) + np.pad(other, (0, longest - len(other)))


def draw_drops(trace: rps.Trace, title: str, path: Path) -> None:
    """Draws the shares of each link as heat maps, and histograms of arrivals and of bursts.

    Args:
        trace: What arrived.
        title: Above the picture.
        path: Path of the PNG file.
    """
    counted = count_drops(trace)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(12.0, 2.9), layout="constrained")
        *maps, arrivals, bursts = figure.subplots(1, 4)
        shares = counted.delivered
        apart = shares[np.isfinite(shares)]
        # One scale for both, as wide as what there is: 1% of drops is to be seen.
        scale: Any = {"vmin": apart.min(initial=1.0), "vmax": 1.0, "cmap": "viridis"}
        for axes, phase, share in zip(maps, _PHASES, shares, strict=True):
            image = axes.imshow(share, **scale)
            axes.set(title=phase, xlabel="to worker")
            axes.grid(visible=False)
        maps[0].set(ylabel="from worker")
        figure.colorbar(image, ax=maps, label="delivered")
        _bars(arrivals, counted.arrivals, "workers that arrive at a server")
        _bars(bursts, counted.bursts[1:], "packets dropped in a row", first=1)
        if counted.bursts.any():
            bursts.set(yscale="log")
        figure.suptitle(f"{title}, {counted.exchanges:,} exchanges", fontsize=10)
        figure.savefig(path, dpi=160)


def _bars(axes: Axes, counts: np.ndarray, label: str, first: int = 0) -> None:
    axes.bar(np.arange(first, first + len(counts)), counts / max(counts.sum(), 1), width=0.9)
    axes.set(xlabel=label, ylabel="share")
