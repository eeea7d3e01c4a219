"""What a comparison finds: a table, a CSV file and a picture."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from launch.comparison.grid import Setting
from launch.reports.intervals import Interval, interval
from launch.trainer.run_directory import PREDICTED


class Result(NamedTuple):
    """The trainings of a setting.

    Attributes:
        setting: What was trained.
        curves: The lines of metrics at the ends of the epochs, of each seed; none if a run has
            diverged.
    """

    setting: Setting
    curves: Sequence[Sequence[dict[str, Any]]]

    def last(self, key: str) -> list[float]:
        """Returns a metric after the last epoch, of each seed."""
        return [lines[-1][key] for lines in self.curves]

    def mean(self, key: str) -> list[float]:
        """Returns a metric's mean over the epochs, of each seed."""
        return [sum(line[key] for line in lines) / len(lines) for lines in self.curves]

    @property
    def predicted(self) -> list[float]:
        """The mean over the epochs of the consensus distance that theory expects, of each seed.

        Nothing of runs of which it expects none.
        """
        known = all(PREDICTED in line for lines in self.curves for line in lines)
        return self.mean(PREDICTED) if known else []


Row = tuple[str, list[Interval | str | None]]
"""A setting's label, and its means over the seeds; None where there is nothing."""


class Column(NamedTuple):
    """A column of the table.

    Attributes:
        name: Its header.
        values: Returns the values of a setting, one a seed.
    """

    name: str
    values: Callable[[Result], Sequence[float]]


def table(results: Sequence[Result], score: str, predict: bool) -> tuple[list[str], list[Row]]:
    """Returns names of columns, and a row for each setting: its label, and its values by column.

    Args:
        results: The trainings.
        score: The test metric.
        predict: Whether to set what theory expects beside the measured consensus distance.
    """
    columns = _measures(score)
    if predict:
        columns.append(Column("predicted", lambda result: result.predicted))
    columns.append(Column("delivered", _delivered))
    if _have(results, "bytes_sent_per_worker"):
        columns.append(Column("MB sent", _megabytes))
    if _have(results, "exchange_seconds"):
        columns.append(Column("seconds an exchange", lambda r: r.mean("exchange_seconds")))
    rows = [(result.setting.label, _cells(result, columns)) for result in results]
    return [column.name for column in columns], rows


def rows(results: Sequence[Result], seeds: Sequence[int], score: str) -> list[dict[str, Any]]:
    """Returns a row for each run and epoch, for a CSV file."""
    keys = ("epoch", "mean_model_train_loss", "train_loss", score, "consensus_distance")
    names = dict.fromkeys(name for result in results for name, _ in result.setting.flags)
    return [
        {**dict.fromkeys(names, ""), **dict(result.setting.flags), "seed": seed}
        | {key: line[key] for key in (*keys, "delivered_fraction")}
        for result in results
        for seed, lines in zip(seeds, result.curves, strict=True)
        for line in lines
    ]


def draw(results: Sequence[Result], score: str, path: Path, predict: bool = False) -> None:
    """Draws the curves of all settings, and below them a row for each, as in the table.

    Args:
        results: The trainings.
        score: The test metric.
        path: Path of the PNG file.
        predict: Whether to draw a circle around what theory expects.
    """
    import matplotlib
    import numpy as np
    from matplotlib.figure import Figure

    from launch.reports.curves import STYLE, label_epochs, set_log_scale

    colours = _colours(results)
    row = 0.19
    below = 0.7 + row * len(results)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.0, 3.0 + below), layout="constrained")
        grid = figure.add_gridspec(2, 1, height_ratios=[3.0, below])
        upper, lower = (figure.add_subfigure(grid[place]) for place in (0, 1))
        loss, distance = upper.subplots(1, 2)
        for result, colour in zip(results, colours, strict=True):
            epochs = [line["epoch"] for line in result.curves[0]]
            for axes, key in ((loss, "mean_model_train_loss"), (distance, "consensus_distance")):
                values = np.mean([[x[key] for x in lines] for lines in result.curves], axis=0)
                axes.plot(epochs, values, color=colour)
        loss.set(ylabel="training loss", yscale="log")
        distance.set(ylabel="consensus distance")
        of_workers = (x["consensus_distance"] for r in results for y in r.curves for x in y)
        set_log_scale(distance, of_workers)
        for axes in (loss, distance):
            label_epochs(axes)

        panels = lower.subplots(1, 3, sharey=True)
        for axes, column in zip(panels, _measures(score), strict=True):
            for place, (result, colour) in enumerate(zip(results, colours, strict=True)):
                _draw_interval(axes, place, column.values(result), colour)
            scale = _scale(results, column)
            axes.set(xlabel=column.name, xscale=scale)
            if scale == "linear":
                axes.locator_params(axis="x", nbins=3)  # Numbers of four digits lie side by side.
        for place, result in enumerate(results if predict else ()):
            circle = {"markersize": 8, "markerfacecolor": "none", "markeredgecolor": "0.4"}
            axes.plot(result.predicted, [place] * len(result.predicted), "o", **circle)
        panels[0].set_yticks(range(len(results)), [result.setting.label for result in results])
        for label, colour in zip(panels[0].get_yticklabels(), colours, strict=True):
            label.set_color(colour)
        panels[0].set_ylim(len(results) - 0.5, -0.5)
        figure.savefig(path, dpi=160)


def _delivered(result: Result) -> list[float]:
    """Returns the mean over the epochs since the first exchange; nothing where there is none."""
    sent, key = "bytes_sent_per_worker", "delivered_fraction"
    known = [[line[key] for line in lines if line.get(sent) != 0] for lines in result.curves]
    return [sum(values) / len(values) for values in known if values]


def _megabytes(result: Result) -> list[float]:
    return [bytes_sent / 1e6 for bytes_sent in result.last("bytes_sent_per_worker")]


def _cells(result: Result, columns: Sequence[Column]) -> list[Interval | str | None]:
    if not result.curves:
        return ["diverged", *[None] * (len(columns) - 1)]
    values = [column.values(result) for column in columns]
    return [interval(of_seeds) if of_seeds else None for of_seeds in values]


def _have(results: Sequence[Result], key: str) -> bool:
    return all(key in lines[-1] for result in results for lines in result.curves)


def _measures(score: str) -> list[Column]:
    return [
        Column("training loss", lambda result: result.last("mean_model_train_loss")),
        Column(score.replace("_", " "), lambda result: result.last(score)),
        Column("consensus distance", lambda result: result.mean("consensus_distance")),
    ]


def _scale(results: Sequence[Result], column: Column) -> str:
    values = [value for result in results for value in column.values(result)]
    return "log" if 0 < 30 * min(values) < max(values) else "linear"


def _draw_interval(axes: Any, place: int, values: Sequence[float], colour: Any) -> None:
    """Draws the mean of the seeds, and each of them."""
    axes.plot(values, [place] * len(values), "|", color=colour, markersize=7)
    axes.plot([sum(values) / len(values)], [place], "o", color=colour, markersize=4)


def _colours(results: Sequence[Result]) -> list[Any]:
    """Returns a colour for each setting: one for each value of the first flag, in shades."""
    import numpy as np
    from matplotlib.colors import to_rgb

    firsts = [result.setting.flags[:1] for result in results]
    distinct = list(dict.fromkeys(firsts))
    if len(distinct) == 1 and len(results) <= 10:
        return [f"C{place}" for place in range(len(results))]
    colours = []
    for place, first in enumerate(firsts):
        colour = np.array(to_rgb(f"C{distinct.index(first)}"))
        shade = firsts[: place + 1].count(first) / firsts.count(first)
        colours.append(1 - (1 - colour) * (0.25 + 0.75 * shade))
    return colours
