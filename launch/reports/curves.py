"""The picture of one run: loss, test score, and how far apart the workers are."""

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

LABELS = {"test_accuracy": "test accuracy", "test_slot_f1": "test slot F1"}
STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
}


def draw_curves(lines: list[dict[str, Any]], score: str, title: str, path: Path) -> None:
    """Draws the curves of a run.

    Args:
        lines: Lines of metrics; those at the end of an epoch hold the mean model's scores.
        score: The test metric to draw.
        title: Above the picture.
        path: Path of the PNG file.
    """
    epochs = [line for line in lines if score in line]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.0, 2.7), layout="constrained")
        loss, accuracy, distance = figure.subplots(1, 3)
        _plot(loss, lines, "train_loss", label="workers, mini-batches", color="C7", alpha=0.8)
        _plot(loss, epochs, "mean_model_train_loss", label="mean model, all examples", color="C0")
        _plot(loss, epochs, "test_loss", label="mean model, test set", color="C1")
        loss.set(ylabel="loss", yscale="log")
        loss.legend()
        _plot(accuracy, epochs, score, color="C1")
        accuracy.set(ylabel=LABELS.get(score, score.replace("_", " ")))
        _plot(distance, lines, "consensus_distance", color="C2")
        distance.set(ylabel="consensus distance")
        distance.set_ylim(bottom=0)
        for axes in (loss, accuracy, distance):
            axes.set(xlabel="epoch")
            axes.set_xlim(left=0)
        figure.suptitle(title, fontsize=10)
        figure.savefig(path, dpi=160)


def _plot(axes: Axes, lines: list[dict[str, Any]], key: str, **style: Any) -> None:
    # A single epoch is a point, which a line would not show.
    marker = "." if len(lines) < 3 else None
    axes.plot([x["epoch"] for x in lines], [x[key] for x in lines], marker=marker, **style)
