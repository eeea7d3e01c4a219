"""Both halves of the paper: the drops of training traffic, and what the web gains by them.

Drops in a queue come in bursts. So training runs under exactly the drops that a simulation
recorded, and beside it under independent drops of the same rate.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np

from data import Source
from launch.cli.command_line import (
    Seeds,
    Within,
    check_untouched,
    exactly,
    expect,
    not_allowed,
    read_command,
    split_arguments,
)
from launch.cli.fields import names_given
from launch.colocation.options import Thresholds, refusals
from launch.colocation.report import of_unfinished, write_results
from launch.colocation.sweep import Job, measure_all, summary
from launch.config import ONE_RUN_FLAGS, PRESETS, LossyAlgorithm, TrainConfig, parse
from launch.reports.intervals import interval
from launch.reports.tables import markdown_table
from launch.tasks.source import find_source, shapes_of
from launch.trainer.many_runs import folder_of, train_all
from launch.trainer.writing import check_can_write
from rps_jax.colocation import Settings, save_record, simulate, with_discipline
from rps_jax.colocation.settings import MOST_SECONDS

OF_THE_QUEUE, INDEPENDENT = KINDS = ("of the queue", "independent")
MEASURED = ("test_accuracy", "mean_model_train_loss", "consensus_distance")

Row = dict[str, Any]
Curve = tuple[str, str]
"""The algorithm, and the kind of drops."""


@dataclasses.dataclass(frozen=True)
class TradeoffConfig:
    """Train under the drops that make a web service faster.

    Flags of launch.train, for every run, may follow after " -- "; a host is a worker.
    """

    web_rate: Annotated[float, Within(1, 1e9)] = 5000
    """Web messages a second."""
    thresholds_kb: Thresholds = (1000, 600, 200, 0)
    """Bytes (in thousands) beyond which a port takes no learning packet: a point each."""
    iterations: int = 100
    """Learning iterations (0.71 s) to record, after one of warm-up; training replays them, and then
    begins anew."""
    algorithms: tuple[LossyAlgorithm, ...] = ("rps", "gradient-averaging")
    """What is averaged: models or gradients."""
    seeds: Seeds = (0, 1, 2)
    """A training of each for every seed; the simulation is the same."""
    output_dir: Path = Path("docs/results/tradeoff")
    """Folder of the picture, the table, the traces and the runs."""


@dataclasses.dataclass(frozen=True)
class Point:
    """One threshold.

    Attributes:
        threshold_kb: Thousands of bytes.
        speedup: Speed-up of the web's mean completion time over the same queue without drops.
        reduce_scatter_drops: Share of packets dropped in that phase.
        all_gather_drops: The same of the other.
        packets: How many packets a message has.
        trace: File of what arrived.
    """

    threshold_kb: float
    speedup: float
    reduce_scatter_drops: float
    all_gather_drops: float
    packets: int
    trace: Path

    @property
    def drop_fraction(self) -> float:
        """The share of packets dropped in both phases."""
        return (self.reduce_scatter_drops + self.all_gather_drops) / 2


def run(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    own, flags = split_arguments(argv)
    config = read_command(TradeoffConfig, "launch.colocate tradeoff", own, TradeoffConfig())
    base = _base(config, flags)
    check_can_write("output_dir", config.output_dir)
    fifo = _fifo(config, base.num_workers)
    source = find_source(base)
    _check_size(base, source, fifo.chunk_packets)

    points, unfinished = _simulate(config, fifo)
    curves = [(algorithm, kind) for algorithm in config.algorithms for kind in KINDS]
    places = [
        (*curve, point, seed) for curve in curves for point in points for seed in config.seeds
    ]
    runs = [_training(config, flags, *place) for place in places]
    metrics = train_all(runs, source)
    score = folder_of(runs[0]).read_summary()["score"]
    rows = [
        {
            "algorithm": algorithm,
            "drops": kind,
            "threshold_kb": point.threshold_kb,
            "learning_drop_fraction": point.drop_fraction,
            "speedup": point.speedup,
            "seed": seed,
            **{key: value for key, value in lines[-1].items() if key in (score, *MEASURED)},
        }
        for (algorithm, kind, point, seed), lines in zip(places, metrics, strict=True)
    ]
    _draw(curves, points, rows, score, config.output_dir / "tradeoff.png")
    table = _table(config, curves, points, unfinished, rows, score)
    write_results("tradeoff", config, fifo.as_json(), rows, table, flags)
    return 0


def _base(config: TradeoffConfig, flags: list[str]) -> TrainConfig:
    """Returns what all trainings share, once the flags are known to be such of each algorithm."""
    if "algorithm" in names_given(flags):
        not_allowed("algorithm", None, "after --")
    base, *_ = [parse([*flags, "--algorithm", algorithm]) for algorithm in config.algorithms]
    ours = ("channel", "drop_rate", "all_gather_drop_rate", "packets", "seed")
    others = ("output_dir", "resume", *ONE_RUN_FLAGS)
    check_untouched(base, PRESETS[base.preset], (*ours, *others))
    return base


def _fifo(config: TradeoffConfig, num_workers: int) -> Settings:
    """Returns the queue that drops nothing, checked."""
    hosts = Settings(num_hosts=num_workers, web_rate=config.web_rate, discipline="fifo")
    number = ("num_workers", num_workers)
    with refusals(num_hosts=number, pacing_mbps=number):
        hosts.check()
    most = int(MOST_SECONDS / hosts.period) - 1
    expect("iterations", config.iterations, 1 <= config.iterations <= most, f"in [1, {most}]")
    duration = (config.iterations + 1) * hosts.period
    return dataclasses.replace(hosts, duration=duration, warmup=hosts.period)


def _check_size(base: TrainConfig, source: Source, packets: int) -> None:
    """Raises `UsageError` if the model cannot be cut into as many packets as the simulated one."""
    size = sum(leaf.size for leaf in jax.tree.leaves(shapes_of(base, source)))
    least = base.num_workers * packets
    expected = f"a model of at least {least:,} parameters, one a packet; found {size:,}"
    expect("preset", base.preset, size >= least, expected)


def _simulate(config: TradeoffConfig, fifo: Settings) -> tuple[list[Point], int]:
    """Returns the points, and how many messages did not complete.

    What has been simulated before is read.
    """
    print("simulating the queue", flush=True)
    (base,) = measure_all(summary, [Job(fifo)], config.output_dir / "points.jsonl", processes=1)
    more = f"more: of {config.web_rate:g} messages a second, none is complete"
    expect("iterations", config.iterations, base["completed"] > 0, more)
    unfinished = base["unfinished"]
    between = ~np.eye(fifo.num_hosts, dtype=bool)
    points = []
    for kb in sorted(config.thresholds_kb, reverse=True):
        settings = with_discipline(fifo, "threshold", threshold_bytes=1000 * kb)
        path = config.output_dir / f"trace-{kb:g}kB-{Job(settings).key(summary)[:8]}.npz"
        if not path.exists():
            result = simulate(settings, record=True)
            assert result.arrived is not None
            # Nor are drops of the warm-up trained with.
            save_record(path, settings, dataclasses.replace(result, arrived=result.arrived[1:]))
        with np.load(path) as file:
            found = json.loads(str(file["description"]))["summary"]
            packets = int(file["packets"])
            arrived = np.unpackbits(file["arrived"], axis=-1, count=packets)
        speedup = base["mean_completion_ms"] / found["mean_completion_ms"]
        unfinished += found["unfinished"]
        dropped = [float(1 - arrived[:, phase][:, between].mean()) for phase in (0, 1)]
        points.append(Point(kb, speedup, dropped[0], dropped[1], packets, path))
    return points, unfinished


def _training(
    config: TradeoffConfig, flags: list[str], algorithm: str, kind: str, point: Point, seed: int
) -> TrainConfig:
    name = f"{algorithm}-{kind.split()[-1]}-{exactly(point.threshold_kb)}kB-{seed}"
    own = ["--algorithm", algorithm, "--seed", str(seed)]
    own += ["--output-dir", str(config.output_dir / "runs" / name)]
    if kind == OF_THE_QUEUE:
        own += ["--channel", "trace", "--trace", str(point.trace)]
    else:
        own += ["--packets", str(point.packets)]
        own += ["--drop-rate", repr(point.reduce_scatter_drops)]
        own += ["--all-gather-drop-rate", repr(point.all_gather_drops)]
    return parse([*flags, *own])


def _at(rows: list[Row], curve: Curve, point: Point, key: str) -> list[float]:
    """Returns a value of all seeds, at a point of a curve."""
    return [
        row[key]
        for row in rows
        if (row["algorithm"], row["drops"], row["threshold_kb"]) == (*curve, point.threshold_kb)
    ]


def _table(
    config: TradeoffConfig,
    curves: Sequence[Curve],
    points: list[Point],
    unfinished: int,
    rows: list[Row],
    score: str,
) -> str:
    lines = [
        f"{config.web_rate:g} web messages a second; {score.replace('_', ' ')} of the mean model, "
        f"seeds {', '.join(map(str, config.seeds))}; ± is the half-width of a 95% confidence "
        "interval.",
        "",
    ]
    header = ["web is faster by", "learning dropped"]
    header += [f"{algorithm}, drops {kind}" for algorithm, kind in curves]
    cells = [
        [
            f"{point.speedup:.3g}x",
            f"{point.drop_fraction:.1%}",
            *(interval(_at(rows, curve, point, score)) for curve in curves),
        ]
        for point in points
    ]
    lines += markdown_table(header, cells)
    lines += of_unfinished(unfinished)
    return "\n".join(lines) + "\n"


def _draw(
    curves: Sequence[Curve], points: list[Point], rows: list[Row], score: str, path: Path
) -> None:
    import matplotlib
    from matplotlib.figure import Figure

    from launch.reports.curves import STYLE, label_of

    algorithms = list(dict.fromkeys(algorithm for algorithm, _ in curves))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.0, 3.6), layout="constrained")
        left, right = figure.subplots(1, 2)
        speedups = [point.speedup for point in points]
        for axes, key in ((left, score), (right, "mean_model_train_loss")):
            for algorithm, kind in curves:
                values = [_at(rows, (algorithm, kind), point, key) for point in points]
                style: dict[str, Any] = {
                    "color": f"C{algorithms.index(algorithm)}",
                    "linestyle": "-" if kind == OF_THE_QUEUE else ":",
                }
                label = f"{algorithm}, drops {kind}"
                axes.plot(speedups, [np.mean(x) for x in values], marker="o", label=label, **style)
                for speedup, seeds in zip(speedups, values, strict=True):
                    axes.plot([speedup] * len(seeds), seeds, ".", color=style["color"], alpha=0.4)
            axes.set(xlabel="speed-up of the web's mean completion time")
        left.set(ylabel=label_of(score))
        right.set(ylabel="training loss of the mean model", yscale="log")
        for axes in (left, right):
            for point, line in zip(points, _lines(speedups), strict=True):
                axes.annotate(
                    f"{point.drop_fraction:.0%} dropped",
                    (point.speedup, 1.0),
                    (0, 2 + 9 * line),
                    xycoords=("data", "axes fraction"),
                    textcoords="offset points",
                    ha="center",
                    fontsize=7,
                )
        figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=2)
        figure.savefig(path, dpi=160)


def _lines(speedups: Sequence[float]) -> list[int]:
    """Returns on which line above a panel each label stands: the lowest on which it has room."""
    room = (max(speedups) - min(speedups)) / 5
    on_lines: list[list[float]] = [[] for _ in speedups]
    found = []
    for speedup in speedups:
        free = (all(abs(speedup - other) > room for other in line) for line in on_lines)
        found.append(list(free).index(True))
        on_lines[found[-1]].append(speedup)
    return found
