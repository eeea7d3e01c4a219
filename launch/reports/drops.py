"""The picture of a trace: what arrived on each link and at the servers, and drops in a row."""

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

import rps_jax as rps
from launch.reports.curves import STYLE
from launch.reports.link_pictures import draw_arrivals, draw_bursts, draw_heat_maps
from launch.reports.links import LinkStatistics
from rps_jax.channels.channel import REDUCE_SCATTER
from rps_jax.links import BURST_BINS

_MOST_PACKETS = 2**27
"""How many packets are counted, of the first exchanges: what fits into memory."""


def exchanges_counted(trace: rps.Trace) -> int:
    """Returns how many exchanges of a trace are counted, of the first."""
    return min(len(trace.arrived), max(1, _MOST_PACKETS // (trace.num_hosts * trace.packets)))


def count_drops(trace: rps.Trace) -> LinkStatistics:
    """Counts what arrived and what did not, link by link; the last exchange ends all bursts."""
    n, packets = trace.num_hosts, trace.packets
    exchanges = exchanges_counted(trace)
    arrived = trace.arrived[:exchanges]
    delivered = np.full((2, n, n), np.nan)
    at_server = np.zeros((exchanges, n, packets), np.uint16)
    bursts, dropped = np.zeros(BURST_BINS, np.int64), 0
    for phase, source in np.ndindex(2, n):
        sent = np.unpackbits(np.asarray(arrived[:, phase, source]), axis=-1, count=packets)
        sent[:, source] = 1
        if phase == REDUCE_SCATTER:
            at_server += sent
        for other in (worker for worker in range(n) if worker != source):
            of_link = sent[:, other].ravel()
            delivered[phase, source, other] = of_link.mean()
            lengths = _lengths(of_link == 0)
            bins = np.minimum(np.frexp(lengths)[1] - 1, BURST_BINS - 1)
            bursts += np.bincount(bins, minlength=BURST_BINS)
            dropped += int(lengths.sum())
    arrivals = np.bincount(at_server.ravel(), minlength=n + 1)
    return LinkStatistics(delivered, arrivals, bursts, dropped / max(int(bursts.sum()), 1))


def _lengths(dropped: np.ndarray) -> np.ndarray:
    """Returns the lengths of the runs of True."""
    padded = np.concatenate([[False], dropped, [False]])
    begins, ends = np.flatnonzero(padded[1:] != padded[:-1]).reshape(-1, 2).T
    return ends - begins


def draw_drops(trace: rps.Trace, title: str, path: Path) -> None:
    """Draws the shares of each link as heat maps, and histograms of arrivals and of bursts.

    Args:
        trace: What arrived.
        title: Above the picture.
        path: Path of the PNG file.
    """
    counted, n = count_drops(trace), trace.num_hosts
    listed = counted.in_full()
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(12.0, 2.9), layout="constrained")
        *maps, arrivals, bursts = figure.subplots(1, 4)
        draw_heat_maps(maps, counted.delivered, n)
        draw_arrivals(arrivals, np.array(listed["arrivals"]), n)
        draw_bursts(bursts, counted.bursts)
        figure.suptitle(f"{title}, {exchanges_counted(trace):,} exchanges", fontsize=10)
        figure.savefig(path, dpi=160)
