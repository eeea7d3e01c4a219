"""The pictures of a figure: training loss, test metric and consensus distance over the epochs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from launch.figures.runs import Curve
from launch.figures.tables import NAMES
from launch.reports.curves import STYLE, label_epochs, label_of, set_log_scale

_COLORS = {"rps": "Blues", "gradient-averaging": "Oranges", "gradient-averaging-zero": "Greens"}
_OF_PAPER: dict[str, Any] = {"marker": 0, "markersize": 9, "markeredgewidth": 2}
_MARKERS = ("", "o", "s", "^", "D", "v")


def draw(
    curves: Sequence[Curve], paper: dict[float, float], score: str, title: str, path: Path
) -> None:
    """Draws the curves of a figure: means over the seeds, and bands from the least to the greatest.

    Args:
        curves: The figure's curves.
        paper: The paper's final training loss of RPS, by probability of arrival.
        score: The test metric, as metrics name it.
        title: Above the picture.
        path: Path of the PNG file.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.0, 3.3), layout="constrained")
        loss, test = figure.subplots(1, 2)
        for curve in curves:
            style = _style(curve, curves)
            _band(loss, curve.epochs, curve.mean_model_train_loss, label=_label(curve), **style)
            _band(test, curve.epochs, curve.test_metric, **style)
            if curve.shared == "rps" and curve.arrival in paper:
                place = 1.04 * curve.epochs[-1], paper[curve.arrival]
                loss.plot(*place, **_OF_PAPER, color=style["color"], clip_on=False, zorder=5)
        loss.set(ylabel="training loss of the mean model", yscale="log")
        loss.yaxis.set_major_formatter("{x:g}")
        lowest, highest = loss.get_ylim()
        # Within a decade there may be no power of ten to read the scale by.
        loss.yaxis.set_minor_formatter("{x:g}" if highest < 10 * lowest else "")
        test.set(ylabel=label_of(score))
        if paper:
            loss.plot([], [], linestyle="", **_OF_PAPER, color="0.4", label="paper, at the end")
        _finish(figure, title, path)


def draw_distance(curves: Sequence[Curve], title: str, path: Path) -> None:
    """Draws how far the workers' models are from their mean, as `draw` does.

    Args:
        curves: The figure's curves.
        title: Above the picture.
        path: Path of the PNG file.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.0, 3.6), layout="constrained")
        axes = figure.subplots()
        for curve in curves:
            style = _style(curve, curves)
            _band(axes, curve.epochs, curve.consensus_distance, label=_label(curve), **style)
        axes.set(ylabel="consensus distance, root mean square")
        set_log_scale(axes, np.concatenate([c.consensus_distance.ravel() for c in curves]))
        _finish(figure, title, path)


def _finish(figure: Figure, title: str, path: Path) -> None:
    for axes in figure.axes:
        label_epochs(axes)
        axes.set_xlim(left=0)
    figure.legend(loc="outside right center", title="shared, arrival")
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=160)


def _label(curve: Curve) -> str:
    return f"{NAMES[curve.shared]}, {curve.arrival:g}%"


def _style(curve: Curve, curves: Sequence[Curve]) -> dict[str, Any]:
    """Returns a hue for each algorithm, darker the less arrives, with a mark of its own.

    Without drops it is dashed.
    """
    arrivals = sorted({c.arrival for c in curves}, reverse=True)
    place = arrivals.index(curve.arrival)
    depth = 0.4 + 0.6 * place / max(1, len(arrivals) - 1)
    return {
        "color": matplotlib.colormaps[_COLORS[curve.shared]](depth),
        "linestyle": "--" if curve.arrival == 100 else "-",
        "marker": _MARKERS[place % len(_MARKERS)],
        "markersize": 3.5,
    }


def _band(axes: Any, epochs: np.ndarray, values: np.ndarray, **style: Any) -> None:
    # A single epoch is a point, which a line would not show.
    if len(epochs) < 3:
        style["marker"] = style["marker"] or "."
    each = max(1, len(epochs) // 6)
    axes.plot(epochs, values.mean(axis=0), markevery=(each - 1, each), **style)
    if len(values) > 1:
        lowest, highest = values.min(axis=0), values.max(axis=0)
        axes.fill_between(epochs, lowest, highest, color=style["color"], alpha=0.15, linewidth=0)
