"""What the figures share: curves over the thresholds, of several seeds, beside strict priority."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from launch.reports.intervals import Interval, interval
from rps_jax.colocation import Settings, with_discipline

CLAIMED_AT = 0.10
"""The share of learning packets dropped that the paper's text names."""

Row = dict[str, Any]


def variants(fifo: Settings, thresholds_kb: Sequence[float]) -> Iterator[Settings]:
    """Yields the points of a curve: the baseline, the thresholds, and strict priority.

    Args:
        fifo: The baseline, which drops nothing.
        thresholds_kb: Thousands of bytes.
    """
    yield fifo
    for kb in sorted(thresholds_kb, reverse=True):
        yield with_discipline(fifo, "threshold", threshold_bytes=1000 * kb)
    yield with_discipline(fifo, "strict-priority", learning_buffer_bytes=math.inf)


class Curves:
    """The rows of a figure, by what is drawn.

    Each row has `seed`, `discipline`, `learning_drop_fraction`, what tells the curves apart, and
    values. Those of a curve are in the order of `variants`.
    """

    def __init__(self, rows: list[Row], seeds: Sequence[int]) -> None:
        """Takes the rows of all curves and seeds."""
        self._rows, self._seeds = rows, seeds

    def over_drops(self, name: str, **curve: Any) -> tuple[np.ndarray, list[Interval]]:
        """Returns the mean share dropped at each threshold, and a value there.

        Args:
            name: Name of the value.
            **curve: What tells the curve from others.
        """
        rows = [self._thresholds(seed, curve) for seed in self._seeds]
        dropped = np.mean([[row["learning_drop_fraction"] for row in one] for one in rows], axis=0)
        values = zip(*([row[name] for row in one] for one in rows), strict=True)
        return dropped, [interval(value) for value in values]

    def at_drops(self, share: float, name: str, **curve: Any) -> Interval | None:
        """Returns a value at a share of drops, between thresholds; None if none drops as much."""
        found = []
        for seed in self._seeds:
            rows = self._thresholds(seed, curve)
            dropped = [row["learning_drop_fraction"] for row in rows]
            if dropped[-1] < share:
                return None
            found.append(float(np.interp(share, dropped, [row[name] for row in rows])))
        return interval(found)

    def under(self, discipline: str, name: str, **curve: Any) -> Interval:
        """Returns a value under a discipline of which there is one point."""
        return interval([self._of(seed, (discipline,), curve)[0][name] for seed in self._seeds])

    def _thresholds(self, seed: int, curve: Row) -> list[Row]:
        return self._of(seed, ("fifo", "threshold"), curve)

    def _of(self, seed: int, disciplines: tuple[str, ...], curve: Row) -> list[Row]:
        return [
            row
            for row in self._rows
            if row["seed"] == seed
            and row["discipline"] in disciplines
            and all(row[key] == value for key, value in curve.items())
        ]


def plot_curve(
    axes: Any, curves: Curves, name: str, color: str, style: str = "-", **curve: Any
) -> None:
    """Draws a curve and its band of confidence."""
    dropped, found = curves.over_drops(name, **curve)
    mean = np.array([value.mean for value in found])
    half = np.array([value.half_width for value in found])
    axes.plot(100 * dropped, mean, style, color=color, marker=".", markersize=4)
    axes.fill_between(100 * dropped, mean - half, mean + half, color=color, alpha=0.2, linewidth=0)


def plot_strict(axes: Any, curves: Curves, name: str, color: str, **curve: Any) -> None:
    """Draws a star where strict priority is."""
    dropped = 100 * curves.under("strict-priority", "learning_drop_fraction", **curve).mean
    value = curves.under("strict-priority", name, **curve).mean
    axes.plot(dropped, value, "*", color=color, markersize=9, zorder=5)
