"""The picture of one run: loss, test score, how far apart the workers are, and what arrived."""

import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from launch.reports.link_pictures import draw_arrivals, draw_bursts, draw_heat_maps
from launch.reports.links import lists_of_links
from launch.trainer.run_directory import PREDICTED

Lines = list[dict[str, Any]]

STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
}


def draw_curves(lines: Lines, score: str, num_workers: int, title: str, path: Path) -> None:
    """Draws the curves of a run, and below them what arrived, where that was counted.

    Args:
        lines: Lines of metrics; those at the end of an epoch hold the mean model's scores, and what
            arrived in the epoch.
        score: The test metric to draw.
        num_workers: How many workers there are.
        title: Above the picture.
        path: Path of the PNG file.
    """
    counted = _counted(lines, num_workers)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11.0, 5.6 if counted else 2.8), layout="constrained")
        grid = figure.add_gridspec(2 if counted else 1, 1)
        _draw_training(grid[0].subgridspec(1, 3).subplots(), lines, score)
        if counted:
            _draw_links(grid[1].subgridspec(1, 4).subplots(), counted, num_workers)
        figure.suptitle(textwrap.fill(title, 130), fontsize=10)
        figure.savefig(path, dpi=160)


def _draw_training(panels: Any, lines: Lines, score: str) -> None:
    epochs = [line for line in lines if score in line]
    loss, accuracy, distance = panels
    _plot(loss, lines, "train_loss", label="workers, mini-batches", color="C7", alpha=0.8)
    _plot(loss, epochs, "mean_model_train_loss", label="mean model, all examples", color="C0")
    _plot(loss, epochs, "test_loss", label="mean model, test set", color="C1")
    loss.set(ylabel="loss", yscale="log")
    loss.legend()
    _plot(accuracy, epochs, score, label="mean model", color="C1")
    _plot_range(accuracy, epochs, f"worst_worker_{score}", f"best_worker_{score}", bars=True)
    accuracy.set(ylabel=label_of(score))
    accuracy.legend(loc="lower right")
    _plot(distance, lines, "consensus_distance", label="root mean square", color="C2")
    expected = [line for line in lines if PREDICTED in line]
    if expected:
        _plot(distance, expected, PREDICTED, label="predicted", color="0.3", linestyle=":")
    _plot_range(distance, lines, "smallest_distance", "largest_distance")
    distance.set(ylabel="distance from the mean model")
    distance.set_ylim(bottom=0)
    distance.legend()
    for axes in (loss, accuracy, distance):
        label_epochs(axes)
        axes.set_xlim(left=0)


def label_of(score: str) -> str:
    """Returns the label of an axis of a test metric."""
    return score.replace("_", " ").replace(" f1", " F1")


def label_epochs(axes: Axes) -> None:
    """Labels the axis of the epochs, whose numbers are whole."""
    axes.set(xlabel="epoch")
    axes.locator_params(axis="x", integer=True)


def set_log_scale(axes: Axes, values: Iterable[float]) -> None:
    """Makes the vertical axis logarithmic if any of the values, which are not negative, is not 0.

    Zeros, such as the distance of workers that agree to the last bit, have no place on it.
    """
    if any(value > 0 for value in values):
        axes.set_yscale("log", nonpositive="mask")


def _plot(axes: Axes, lines: Lines, key: str, **style: Any) -> None:
    # A single epoch is a point, which a line would not show.
    marker = "." if len(lines) < 3 else None
    axes.plot([x["epoch"] for x in lines], [x[key] for x in lines], marker=marker, **style)


def _plot_range(axes: Axes, lines: Lines, low: str, high: str, *, bars: bool = False) -> None:
    """Plots from where to where the workers are, in the lines that say so."""
    known = [line for line in lines if low in line]
    if not known:
        return
    epochs, lows, highs = ([line[key] for line in known] for key in ("epoch", low, high))
    if bars:
        middle, half = np.add(lows, highs) / 2, np.subtract(highs, lows) / 2
        axes.errorbar(epochs, middle, half, fmt="none", ecolor="C4", capsize=2, label="workers")
    else:
        axes.fill_between(epochs, lows, highs, color="C2", alpha=0.2, lw=0, label="workers")


def _counted(lines: Lines, num_workers: int) -> list[tuple[np.ndarray, ...]]:
    """Returns what arrived in each epoch in which there were so many workers."""
    found = (lists_of_links(line, num_workers) for line in lines)
    return [tuple(lists.values()) for lists in found if lists is not None]


def _draw_links(panels: Any, counted: list[tuple[np.ndarray, ...]], num_workers: int) -> None:
    """Draws what arrived in all epochs together."""
    *maps, of_arrivals, of_bursts = panels
    delivered, arrivals, bursts = (np.stack(of_epochs) for of_epochs in zip(*counted, strict=True))
    known = np.isfinite(delivered)
    total, count = np.where(known, delivered, 0).sum(0), known.sum(0)
    mean = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    draw_heat_maps(maps, mean, num_workers)
    draw_arrivals(of_arrivals, arrivals.sum(0), num_workers)
    draw_bursts(of_bursts, bursts.sum(0))
