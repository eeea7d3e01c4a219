"""The table and the picture of the case study."""

import statistics
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from launch.benchmarks.colocation.config import ONE_QUEUE, WAYS, WEB_FIRST, ColocationConfig
from launch.benchmarks.results import Row
from launch.reports.curves import STYLE
from launch.reports.intervals import interval
from launch.reports.tables import markdown_table


def table(config: ColocationConfig, rows: list[Row]) -> str:
    """Returns the table, in Markdown."""

    def shown(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    intervals = [interval(row["train_loss"]) for row in rows if row["train_loss"]]
    seeds = ", ".join(map(str, config.training_seeds))
    if intervals and len(config.training_seeds) > 1:
        widest = max(each.half_width for each in intervals)
        seeds += f", 95% intervals of ± {widest:.2g} at the most"
    cells = [
        [
            f"{row['web_load']:.0%}",
            row["way"],
            shown(row["mean_ms"], ".0f"),
            shown(row["p99_ms"], ".0f"),
            shown(row["simulated_mean_ms"], ".0f"),
            shown(row["simulated_p99_ms"], ".0f"),
            shown(row["dropped"], ".1%"),
            shown(row["simulated_dropped"], ".1%"),
            shown(row["exchange_ms"], ".0f"),
            shown(row["train_loss"] and statistics.mean(row["train_loss"]), ".4f"),
        ]
        for row in rows
    ]
    header = ["web", "training", "mean", "p99", "sim.", "p99", "drops", "sim.", "exchange", "loss"]
    lines = [
        f"{config.num_workers} hosts on links of {config.rate:g} Mbps; training takes "
        f"{config.training_load:.0%} of each.",
        "Completion of web messages and exchanges in ms, beside what is simulated (sim.);",
        "drops of the training, and its loss under the same drops: mean over seeds",
        f"{seeds}.",
        "",
        *markdown_table(header, cells),
    ]
    if unfinished := sum(row["unfinished"] for row in rows):
        lines += ["", f"{unfinished} messages did not complete; times are of the others."]
    return "\n".join(lines) + "\n"


def draw(config: ColocationConfig, rows: list[Row], path: Path) -> None:
    """Draws completion times and drops over the web's load, and what drops bring the web.

    The last panel is figure 6 of the paper: the speed-up of the web, when it goes first instead of
    waiting in one queue, over what training drops for it, a point a load.
    """
    loads = [100 * web_load for web_load in config.web_loads]
    panels = (
        ("mean completion time (ms)", "mean_ms", 1.0),
        ("99th percentile (ms)", "p99_ms", 1.0),
        ("training dropped (%)", "dropped", 100.0),
    )
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11.6, 3.4), layout="constrained")
        *of_loads, of_drops = figure.subplots(1, 4)
        for axes, (title, name, scale) in zip(of_loads, panels, strict=True):
            for number, way in enumerate(WAYS):
                of_way = [row for row in rows if row["way"] == way.name]
                for prefix, style in (("", "o-"), ("simulated_", "x:")):
                    values = [row[f"{prefix}{name}"] for row in of_way]
                    if None not in values:
                        label = way.name if name == "mean_ms" and not prefix else None
                        scaled = [scale * value for value in values]
                        axes.plot(loads, scaled, style, color=f"C{number}", label=label)
            axes.set(xlabel="web load (% of each link)", title=title)
            axes.set_ylim(bottom=0)
        for prefix, style in (("", "o-"), ("simulated_", "x:")):
            for number, of_what in enumerate(("mean", "p99")):
                of_drops.plot(
                    *_speed_up(rows, prefix, f"{of_what}_ms"),
                    style,
                    color=f"C{4 + number}",
                    label=None if prefix else of_what,
                )
        of_drops.legend()
        of_drops.set(xlabel="training dropped (%)", title="web first: speed-up")
        of_drops.set_ylim(bottom=0)
        figure.axes[0].plot([], [], "x:", color="0.3", label="simulated")
        of_all = figure.axes[0].get_legend_handles_labels()
        figure.legend(*of_all, loc="outside lower center", ncols=5)
        figure.savefig(path, dpi=160)


def _speed_up(rows: list[Row], prefix: str, name: str) -> tuple[list[float], list[float]]:
    """Returns what training drops, in percent, and how much sooner messages complete, by load."""
    of_way = {(row["way"], row["web_load"]): row for row in rows}
    drops, speed_ups = [], []
    for (way, web_load), row in of_way.items():
        if way == WEB_FIRST.name:
            waits = of_way[ONE_QUEUE.name, web_load][f"{prefix}{name}"]
            goes_first, dropped = row[f"{prefix}{name}"], row[f"{prefix}dropped"]
            if None not in (waits, goes_first, dropped):
                drops.append(100 * dropped)
                speed_ups.append(waits / goes_first)
    return drops, speed_ups
