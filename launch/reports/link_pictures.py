"""Pictures of what arrived on each link."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from launch.reports.links import group_starts
from rps_jax.links import BURST_BINS

_PHASES = ("reduce-scatter", "all-gather")


def draw_heat_maps(axes: Sequence[Axes], delivered: np.ndarray, num_workers: int) -> None:
    """Draws the share of each link that arrived, phase by phase, on one scale.

    Args:
        axes: Of the two maps.
        delivered: `[2, rows, rows]`, a row a worker or a group of workers; NaN where unknown.
        num_workers: How many workers there are.
    """
    known = delivered[np.isfinite(delivered)]
    # As wide as what there is: 1% of drops is to be seen.
    scale: Any = {"vmin": known.min(initial=1.0), "vmax": 1.0, "cmap": "viridis"}
    first, last = -0.5, num_workers - 0.5
    for of_phase, phase, share in zip(axes, _PHASES, delivered, strict=True):
        image = of_phase.imshow(share, extent=(first, last, last, first), **scale)
        of_phase.set(title=phase, xlabel="to worker")
        of_phase.grid(visible=False)
        for axis in (of_phase.xaxis, of_phase.yaxis):
            axis.set_major_locator(MaxNLocator(integer=True))
    axes[0].set(ylabel="from worker")
    figure: Any = axes[0].figure
    figure.colorbar(image, ax=list(axes), label="delivered")


def draw_arrivals(axes: Axes, arrivals: np.ndarray, num_workers: int) -> None:
    """Draws how many workers' packets arrived at servers: counts, as `in_full` groups them."""
    edges = np.append(group_starts(num_workers + 1), num_workers + 1) - 0.5
    _draw_bars(axes, edges, arrivals, "workers that arrive at a server")
    fewest = float(edges[min(np.flatnonzero(arrivals).tolist(), default=len(arrivals) - 1)])
    axes.set_xlim(max(fewest - 1.5, -0.5), num_workers + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def draw_bursts(axes: Axes, bursts: np.ndarray) -> None:
    """Draws how many packets were dropped in a row: counts of `BURST_BINS` bins."""
    shown = max([2, *np.flatnonzero(bursts).tolist()]) + 1
    _draw_bars(axes, np.arange(shown + 1) - 0.5, bursts[:shown], "packets dropped in a row")
    labels = ["1", *(f"{2**b}-{2 ** (b + 1) - 1}" for b in range(1, BURST_BINS - 1))]
    labels.append(f"{2 ** (BURST_BINS - 1)}-")
    size: Any = "small" if shown > 5 else None
    axes.set_xticks(
        np.arange(shown), labels[:shown], fontsize=size, rotation=0 if shown < 6 else 45
    )
    axes.grid(visible=False, axis="x")


def _draw_bars(axes: Axes, edges: np.ndarray, counts: np.ndarray, label: str) -> None:
    widths = np.diff(edges)
    axes.bar(edges[:-1] + widths / 2, counts / max(counts.sum(), 1), width=0.9 * widths)
    axes.set(xlabel=label, ylabel="share")
