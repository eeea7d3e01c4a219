"""Figure 6 of the paper: the share of learning traffic lost against the speed-up of the web."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from launch.colocation.options import check_many, refusals
from launch.colocation.report import Interval, interval, write_csv, write_run
from launch.colocation.sweep import Job, default_processes, measure_all, summary
from launch.command_line import expect, read_command
from launch.run_folder import check_can_write
from rps_jax.colocation import Settings, with_discipline

CLAIMED = 0.10
"""The loss of which the paper says: "more than 1.2" times as fast."""
COLUMNS = {"mean": "mean_completion_ms", "p99": "p99_completion_ms"}


@dataclasses.dataclass(frozen=True)
class Fig6Config:
    """Measure how much faster web messages complete as learning packets are lost.

    The baseline is the same queue with nothing lost. Every point is of the same web messages and
    the same learning packets as its baseline. Points that are done already are not repeated.
    """

    web_rates: tuple[float, ...] = (2000, 5000, 10_000)
    """Web messages a second."""
    thresholds_kb: tuple[float, ...] = (0, 10, 20, 50, 100, 200, 400, 600, 800, 1000, 1200, 1600)
    """Bytes (in thousands) beyond which a port takes no learning packet: a point each."""
    seeds: tuple[int, ...] = (1, 2, 3)
    """A simulation of each point for every seed; bands are 95% confidence intervals over them."""
    iterations: int = 20
    """Learning iterations (0.71 s) to simulate, of which the first is the warm-up."""
    processes: int = default_processes()
    """Simulations at once."""
    output_dir: Path = Path("results/fig6")
    """Folder of the picture, the table and the numbers."""


def run(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    make(read_command(Fig6Config, "launch.colocate fig6", argv, Fig6Config()))
    return 0


def make(config: Fig6Config) -> None:
    """Makes the figure; prints its table.

    Raises:
        UsageError: It cannot be made with these options.
    """
    for name, least in (("web_rates", 1), ("thresholds_kb", 0), ("seeds", 0)):
        check_many(name, getattr(config, name), least)
    expect("iterations", config.iterations, 2 <= config.iterations <= 1000, "in [2, 1000]")
    expect("processes", config.processes, config.processes >= 1, "at least 1")
    check_can_write("output_dir", config.output_dir)
    jobs = [Job(settings) for settings in _plan(config)]
    values = measure_all(summary, jobs, config.output_dir / "points.jsonl", config.processes)
    rows = _rows(jobs, values)
    write_csv(config.output_dir / "fig6.csv", rows)
    table = _table(config, rows)
    (config.output_dir / "table.md").write_text(table)
    write_run(config.output_dir, "fig6", config, jobs[0].settings.as_json())
    _draw(config, rows, config.output_dir / "fig6.png")
    print(f"{table}\nresults in {config.output_dir}/")


def _plan(config: Fig6Config) -> list[Settings]:
    """Returns all points; of each learning traffic, rate and seed, the baseline first."""
    period = Settings().period
    points = []
    for learning in ("bursty", "poisson"):
        for web_rate in config.web_rates:
            for seed in config.seeds:
                fifo = Settings(
                    learning=learning,
                    web_rate=web_rate,
                    discipline="fifo",
                    duration=config.iterations * period,
                    warmup=period,
                    seed=seed,
                )
                with refusals():
                    fifo.check()
                points.append(fifo)
                for kb in config.thresholds_kb:
                    points.append(with_discipline(fifo, "threshold", threshold_bytes=1000 * kb))
                points.append(
                    with_discipline(fifo, "strict-priority", learning_buffer_bytes=math.inf)
                )
    return points


def _rows(jobs: list[Job], values: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns a row a point: its settings, what was measured, and its speed-up."""
    rows = []
    base: dict[str, Any] = {}
    for job, found in zip(jobs, values, strict=True):
        s = job.settings
        if s.discipline == "fifo":
            base = found
        rows.append(
            {
                "learning": s.learning,
                "web_rate": s.web_rate,
                "seed": s.seed,
                "discipline": s.discipline,
                "threshold_bytes": s.parameters.get("threshold_bytes", ""),
                **found,
                **{f"speedup_{name}": base[key] / found[key] for name, key in COLUMNS.items()},
            }
        )
    return rows


class _Curves:
    """The rows, by what is drawn."""

    def __init__(self, config: Fig6Config, rows: list[dict[str, Any]]) -> None:
        self._rows, self._seeds = rows, config.seeds

    def of(self, learning: str, web_rate: float, discipline: str, seed: int) -> list[Any]:
        """Returns the rows of one seed, by loss."""
        wanted = (learning, web_rate, seed)
        found = [
            row
            for row in self._rows
            if (row["learning"], row["web_rate"], row["seed"]) == wanted
            and row["discipline"] in (discipline, "fifo")
        ]
        return sorted(found, key=lambda row: (row["learning_loss"], row["discipline"] != "fifo"))

    def at(self, learning: str, web_rate: float, loss: float, name: str) -> Interval | None:
        """Returns the speed-up at a loss, between the points; None if no point loses as much."""
        found = []
        for seed in self._seeds:
            rows = self.of(learning, web_rate, "threshold", seed)
            losses = [row["learning_loss"] for row in rows]
            if losses[-1] < loss:
                return None
            found.append(float(np.interp(loss, losses, [row[f"speedup_{name}"] for row in rows])))
        return interval(found)

    def strict(self, learning: str, web_rate: float, key: str) -> Interval:
        """Returns what strict priority gives."""
        return interval(
            [self.of(learning, web_rate, "strict-priority", seed)[-1][key] for seed in self._seeds]
        )


def _table(config: Fig6Config, rows: list[dict[str, Any]]) -> str:
    curves = _Curves(config, rows)
    lines = [
        f"Speed-up of web messages over a FIFO that loses nothing; {config.iterations - 1} "
        f"learning iterations, seeds {', '.join(map(str, config.seeds))}; ± is the half-width of a "
        "95% confidence interval.",
        "",
        "| learning | messages/s | FIFO, mean ms | 10% lost: mean | 10% lost: p99 "
        "| paper, 10% lost | strict priority: mean | p99 | lost |",
        "|---" * 9 + "|",
    ]
    for learning in ("bursty", "poisson"):
        for web_rate in config.web_rates:
            base = interval(
                [
                    curves.of(learning, web_rate, "fifo", seed)[0]["mean_completion_ms"]
                    for seed in config.seeds
                ]
            )
            cells = [learning, f"{web_rate:g}", f"{base}"]
            for name in COLUMNS:
                cells.append(f"{curves.at(learning, web_rate, CLAIMED, name) or '-'}")
            cells.append("> 1.2" if learning == "bursty" else "")
            for name in COLUMNS:
                cells.append(f"{curves.strict(learning, web_rate, f'speedup_{name}')}")
            cells.append(f"{curves.strict(learning, web_rate, 'learning_loss').mean:.2%}")
            lines.append("| " + " | ".join(cells) + " |")
    unfinished = sum(row["unfinished"] for row in rows)
    if unfinished:
        lines += ["", f"{unfinished} messages did not complete; means are of the others."]
    return "\n".join(lines) + "\n"


def _draw(config: Fig6Config, rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    from launch.curves import STYLE

    curves = _Curves(config, rows)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.0, 3.6), layout="constrained")
        panels = figure.subplots(1, 2)
        for axes, (name, title) in zip(
            panels, (("mean", "mean"), ("p99", "99th percentile")), strict=True
        ):
            for number, web_rate in enumerate(config.web_rates):
                color = f"C{number}"
                for learning, style in (("bursty", "-"), ("poisson", ":")):
                    seeds = [
                        curves.of(learning, web_rate, "threshold", seed) for seed in config.seeds
                    ]
                    losses = np.mean(
                        [[100 * row["learning_loss"] for row in rows] for rows in seeds], axis=0
                    )
                    points = zip(
                        *([row[f"speedup_{name}"] for row in rows] for rows in seeds), strict=True
                    )
                    found = [interval(values) for values in points]
                    mean = np.array([value.mean for value in found])
                    half = np.array([value.half_width for value in found])
                    axes.plot(losses, mean, style, color=color, marker=".", markersize=4)
                    axes.fill_between(
                        losses, mean - half, mean + half, color=color, alpha=0.2, linewidth=0
                    )
                strict = curves.strict("bursty", web_rate, f"speedup_{name}")
                axes.plot(0, strict.mean, "*", color=color, markersize=9, clip_on=False, zorder=5)
            axes.axvline(100 * CLAIMED, color="0.6", linewidth=0.8, linestyle="--", zorder=0)
            axes.set(xlabel="learning packets lost (%)", ylabel=f"speed-up, {title}")
            axes.set_xlim(left=0)
        panels[0].plot(100 * CLAIMED, 1.2, "k_", markersize=12)
        panels[0].annotate(
            "paper: above", (100 * CLAIMED, 1.2), xytext=(4, -3), textcoords="offset points",
            fontsize=7,
        )  # fmt: skip
        handles = [
            *(
                Line2D([], [], color=f"C{number}", label=f"{web_rate:g} messages/s")
                for number, web_rate in enumerate(config.web_rates)
            ),
            Line2D([], [], color="0.3", label="bursty learning"),
            Line2D([], [], color="0.3", linestyle=":", label="smooth learning"),
            Line2D([], [], color="0.3", linestyle="", marker="*", markersize=9,
                   label="strict priority,\nbursty: none lost"),
        ]  # fmt: skip
        figure.legend(handles=handles, loc="outside right center")
        figure.savefig(path, dpi=160)
