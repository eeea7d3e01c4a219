"""Figure 6 of the paper: the share of learning traffic dropped against the speed-up of the web."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from launch.cli.command_line import Seeds, Within, expect, read_command
from launch.colocation.figure import CLAIMED_AT, Curves, plot_curve, plot_strict, variants
from launch.colocation.options import Iterations, Thresholds, refusals
from launch.colocation.report import of_unfinished, write_results
from launch.colocation.sweep import Job, default_processes, measure_all, summary
from launch.reports.tables import markdown_table
from launch.trainer.writing import check_can_write
from rps_jax.colocation import Settings

LEARNING: tuple[Literal["bursty", "poisson"], ...] = ("bursty", "poisson")
COLUMNS = {"mean": "mean_completion_ms", "p99": "p99_completion_ms"}


@dataclasses.dataclass(frozen=True)
class Fig6Config:
    """Measure how much faster web messages complete as learning packets are dropped.

    The baseline is the same queue without drops. Every point is of the same web messages and
    the same learning packets as its baseline. Points that are done already are not repeated.
    """

    web_rates: Annotated[tuple[float, ...], Within(1, 1e9)] = (2000, 5000, 10_000)
    """Web messages a second."""
    thresholds_kb: Thresholds = (0, 10, 20, 50, 100, 200, 400, 600, 800, 1000, 1200, 1600)
    """Bytes (in thousands) beyond which a port takes no learning packet: a point each."""
    seeds: Seeds = (1, 2, 3)
    """A simulation of each point for every seed; bands are 95% confidence intervals over them."""
    iterations: Iterations = 20
    """Learning iterations (0.71 s) to simulate, of which the first is the warm-up."""
    processes: Annotated[int, Within(1, 1024)] = default_processes()
    """Simulations at once."""
    output_dir: Path = Path("docs/results/fig6")
    """Folder of the picture, the table and the numbers."""


def run(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    config = read_command(Fig6Config, "launch.colocate fig6", argv, Fig6Config())
    check_can_write("output_dir", config.output_dir)
    jobs = [Job(settings) for settings in _plan(config)]
    values = measure_all(summary, jobs, config.output_dir / "points.jsonl", config.processes)
    rows = _rows(config, jobs, values)
    _draw(config, rows, config.output_dir / "fig6.png")
    table = _table(config, rows)
    write_results("fig6", config, jobs[0].settings.as_json(), rows, table)
    return 0


def _plan(config: Fig6Config) -> list[Settings]:
    """Returns all points, those of each curve and seed together."""
    period = Settings().period
    points: list[Settings] = []
    for learning in LEARNING:
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
                with refusals(web_rate=("web_rates", web_rate)):
                    fifo.check()
                points += variants(fifo, config.thresholds_kb)
    return points


def _rows(
    config: Fig6Config, jobs: list[Job], values: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Returns a row a point: its settings, what was measured, and its speed-up."""
    rows = []
    base: dict[str, Any] = {}
    for job, found in zip(jobs, values, strict=True):
        s = job.settings
        if s.discipline == "fifo":
            base = found
            more = f"more: of {s.web_rate:g} messages a second, none is complete"
            expect("iterations", config.iterations, found["completed"] > 0, more)
        rows.append(
            {
                "learning": s.learning,
                "web_rate": s.web_rate,
                "seed": s.seed,
                "discipline": s.discipline,
                "threshold_bytes": s.params.get("threshold_bytes", ""),
                **found,
                **{f"speedup_{name}": base[key] / found[key] for name, key in COLUMNS.items()},
            }
        )
    return rows


def _table(config: Fig6Config, rows: list[dict[str, Any]]) -> str:
    curves = Curves(rows, config.seeds)
    lines = [
        f"Speed-up of web messages over a FIFO that drops nothing; {config.iterations - 1} "
        f"learning iterations, seeds {', '.join(map(str, config.seeds))}; ± is the half-width of a "
        "95% confidence interval.",
        "",
    ]
    header = ["learning", "messages/s", "FIFO, mean ms", "10% dropped: mean", "10% dropped: p99"]
    header += ["paper, 10% dropped", "strict priority: mean", "p99", "dropped"]
    cells = []
    for learning in LEARNING:
        for web_rate in config.web_rates:
            curve: dict[str, Any] = {"learning": learning, "web_rate": web_rate}
            row = [
                learning,
                f"{web_rate:g}",
                curves.under("fifo", "mean_completion_ms", **curve),
                curves.at_drops(CLAIMED_AT, "speedup_mean", **curve) or "-",
                curves.at_drops(CLAIMED_AT, "speedup_p99", **curve) or "-",
                "> 1.2" if learning == "bursty" else "",
                curves.under("strict-priority", "speedup_mean", **curve),
                curves.under("strict-priority", "speedup_p99", **curve),
                f"{curves.under('strict-priority', 'learning_drop_fraction', **curve).mean:.2%}",
            ]
            cells.append(row)
    lines += markdown_table(header, cells)
    lines += of_unfinished(sum(row["unfinished"] for row in rows))
    return "\n".join(lines) + "\n"


def _draw(config: Fig6Config, rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    from launch.reports.curves import STYLE

    curves = Curves(rows, config.seeds)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.0, 3.7), layout="constrained")
        near, far, tail = figure.subplots(1, 3)
        for axes, name in ((near, "mean"), (far, "mean"), (tail, "p99")):
            value = f"speedup_{name}"
            for number, web_rate in enumerate(config.web_rates):
                color = f"C{number}"
                for learning, style in zip(LEARNING, ("-", ":"), strict=True):
                    curve = {"learning": learning, "web_rate": web_rate}
                    plot_curve(axes, curves, value, color, style, **curve)
                plot_strict(axes, curves, value, color, learning="bursty", web_rate=web_rate)
            axes.axvline(100 * CLAIMED_AT, color="0.6", linewidth=0.8, linestyle="--", zorder=0)
            axes.set(xlabel="learning packets dropped (%)", title="mean completion time")
            axes.set_xlim(left=-2)  # Stars are at 0.
        near.set(ylabel="speed-up", xlim=(-0.5, 20), ylim=(0.95, 2.5))
        near.plot(100 * CLAIMED_AT, 1.2, "k_", markersize=12, zorder=6)
        tail.set(title="99th percentile")
        rates = [
            Line2D([], [], color=f"C{number}", label=f"{web_rate:g} messages/s")
            for number, web_rate in enumerate(config.web_rates)
        ]
        others: list[dict[str, Any]] = [
            {"label": "bursty learning"},
            {"linestyle": ":", "label": "smooth learning"},
            {"linestyle": "", "marker": "*", "label": "strict priority, none dropped"},
            {"linestyle": "", "marker": "_", "label": "paper: above this"},
        ]
        handles = rates + [Line2D([], [], color="0.3", **other) for other in others]
        figure.legend(handles=handles, loc="outside lower center", ncols=4)
        figure.savefig(path, dpi=160)
