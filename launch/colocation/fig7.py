"""Figure 7 of the paper: the share of learning traffic dropped against the web messages served."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from scipy.optimize import brentq
from scipy.special import expit, logit

from launch.cli.command_line import Seeds, Within, exactly, expect, read_command
from launch.colocation.figure import CLAIMED_AT, Curves, plot_curve, plot_strict, variants
from launch.colocation.options import Iterations, Thresholds
from launch.colocation.report import of_unfinished, write_results
from launch.colocation.sweep import Job, Values, default_processes, measure_all, summary
from launch.reports.tables import markdown_table
from launch.trainer.writing import check_can_write
from rps_jax.colocation import Settings

LEAST, MOST = 100.0, 0.97
"""The rates that are tried: from so many messages a second, to this share of what links carry."""
TOLERANCE = 1e-3
"""Tolerance of the load that is found, in its logit: at most so large a share of the rate."""


@dataclasses.dataclass(frozen=True)
class Fig7Config:
    """Measure how many more web messages are served, at a given mean completion time.

    For each point, the web's rate is sought at which the mean completion time is the target; all
    rates are tried on the same messages at stretched times. The baseline is the rate that a queue
    serves which drops nothing. Points that are done already are not repeated.
    """

    targets_ms: Annotated[tuple[float, ...], Within(0.001, 1e6)] = (2, 5, 10)
    """Mean completion times to hold."""
    thresholds_kb: Thresholds = (0, 50, 100, 200, 400, 600, 800, 1000, 1200)
    """Bytes (in thousands) beyond which a port takes no learning packet: a point each."""
    seeds: Seeds = (1, 2, 3)
    """A search of each point for every seed; bands are 95% confidence intervals over them."""
    iterations: Iterations = 6
    """Learning iterations (0.71 s) to simulate, of which the first is the warm-up."""
    processes: Annotated[int, Within(1, 1024)] = default_processes()
    """Simulations at once."""
    output_dir: Path = Path("docs/results/fig7")
    """Folder of the picture, the table and the numbers."""


def run(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    config = read_command(Fig7Config, "launch.colocate fig7", argv, Fig7Config())
    check_can_write("output_dir", config.output_dir)
    period = Settings().period
    jobs = []
    for target_ms in config.targets_ms:
        for seed in config.seeds:
            fifo = Settings(
                discipline="fifo", duration=config.iterations * period, warmup=period, seed=seed
            )
            jobs += [Job(point, target_ms) for point in variants(fifo, config.thresholds_kb)]
    values = measure_all(web_rate_at, jobs, config.output_dir / "points.jsonl", config.processes)
    rows = _rows(jobs, values)
    longer = f"longer ones: at {LEAST:g} messages a second, a queue that drops nothing is slower"
    expect("targets_ms", " ".join(map(exactly, config.targets_ms)), len(rows) > 0, longer)
    _draw(config, rows, config.output_dir / "fig7.png")
    table = _table(config, rows)
    write_results("fig7", config, jobs[0].settings.as_json(), rows, table)
    return 0


def web_rate_at(job: Job) -> Values:
    """Finds the rate of web messages at which their mean completion time is the target.

    Returns:
        The summary there, with `web_rate` and `reached`: "target"; "capacity", where the mean is
        below the target even at the highest rate that is tried, of which the summary is; or
        "never", where it is above the target even at the lowest.
    """
    target_ms = job.target_ms
    assert target_ms is not None

    capacity = job.settings.capacity

    # The mean grows as 1 / (capacity - rate): its logarithm is nearly a line over the logit of the
    # load, so that few simulations are needed.
    @functools.cache
    def at(place: float) -> Values:
        rate = float(capacity * expit(place))
        return {"web_rate": rate, **summary(Job(dataclasses.replace(job.settings, web_rate=rate)))}

    def excess(place: float) -> float:
        return math.log(at(place)["mean_completion_ms"] / target_ms)

    least, most = float(logit(LEAST / capacity)), float(logit(MOST))
    if excess(least) > 0:
        return {"reached": "never", **at(least)}
    if excess(most) < 0:
        return {"reached": "capacity", **at(most)}
    found = float(brentq(excess, least, most, xtol=TOLERANCE))
    return {"reached": "target", **at(found)}


def _rows(jobs: list[Job], values: list[Values]) -> list[Values]:
    """Returns a row a point: its settings, what was found, and messages served over the baseline's.

    Targets that the baseline never reaches are left out: there is nothing to compare with.
    """
    rows = []
    never = set()
    base = 0.0
    for job, found in zip(jobs, values, strict=True):
        s = job.settings
        if s.discipline == "fifo":
            base = found["web_rate"]
            if found["reached"] == "never":
                never.add(job.target_ms)
        rows.append(
            {
                "target_ms": job.target_ms,
                "seed": s.seed,
                "discipline": s.discipline,
                "threshold_bytes": s.params.get("threshold_bytes", ""),
                **found,
                "served": found["web_rate"] / base,
            }
        )
    return [row for row in rows if row["target_ms"] not in never]


def _table(config: Fig7Config, rows: list[Values]) -> str:
    curves = Curves(rows, config.seeds)
    lines = [
        "Web messages served at the same mean completion time, over those of a FIFO that drops "
        f"nothing; bursty learning, {config.iterations - 1} iterations, seeds "
        f"{', '.join(map(str, config.seeds))}; ± is the half-width of a 95% confidence interval. "
        "The cost of a message falls by 1 - 1 / served.",
        "",
    ]
    header = ["mean ms", "FIFO, messages/s", "served, 10% dropped", "cost, 10% dropped"]
    header += ["most served", "dropped there", "strict priority: served", "dropped"]
    cells: list[list[Any]] = []
    for target in config.targets_ms:
        if not any(row["target_ms"] == target for row in rows):
            cells.append([f"{target:g}", "never so fast", *[""] * 6])
            continue
        strict = functools.partial(curves.under, "strict-priority", target_ms=target)
        at_claim = curves.at_drops(CLAIMED_AT, "served", target_ms=target)
        dropped, served = curves.over_drops("served", target_ms=target)
        best = max(range(len(served)), key=lambda place: served[place].mean)
        row = [
            f"{target:g}",
            curves.under("fifo", "web_rate", target_ms=target),
            at_claim or "-",
            f"-{1 - 1 / at_claim.mean:.1%}" if at_claim else "-",
            served[best],
            f"{dropped[best]:.0%}",
            strict("served"),
            f"{strict('learning_drop_fraction').mean:.2%}",
        ]
        cells.append(row)
    lines += markdown_table(header, cells)
    bounds = sum(row["reached"] == "capacity" for row in rows)
    if bounds:
        lines += [
            "",
            f"{bounds} of {len(rows)} points are lower bounds: the mean is below the target even "
            f"at {MOST:.0%} of what the links carry.",
        ]
    lines += of_unfinished(sum(row["unfinished"] for row in rows))
    return "\n".join(lines) + "\n"


def _draw(config: Fig7Config, rows: list[Values], path: Path) -> None:
    import matplotlib
    from matplotlib.figure import Figure

    from launch.reports.curves import STYLE

    curves = Curves(rows, config.seeds)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.0, 3.4), layout="constrained")
        near, far = figure.subplots(1, 2)
        for axes in (near, far):
            for number, target in enumerate(config.targets_ms):
                if any(row["target_ms"] == target for row in rows):
                    color = f"C{number}"
                    plot_curve(axes, curves, "served", color, target_ms=target)
                    plot_strict(axes, curves, "served", color, target_ms=target)
                    axes.plot([], [], color=color, label=f"mean of {target:g} ms")
            axes.plot([], [], "*", color="0.3", markersize=9, label="strict priority")
            axes.axvline(100 * CLAIMED_AT, color="0.6", linewidth=0.8, linestyle="--", zorder=0)
            axes.set(xlabel="learning packets dropped (%)", ylabel="messages served, over FIFO's")
            axes.set_xlim(left=-2)  # Stars are at 0.
        near.set_xlim(-0.5, 20)
        figure.legend(*far.get_legend_handles_labels(), loc="outside right center")
        figure.savefig(path, dpi=160)
