"""Training beside a web service on real links: figure 6 of the paper with nothing simulated.

Every host has a worker, which exchanges a model once a period, and a web service, which asks the
others for messages by a Poisson process. What is simulated stands beside it: the same hosts, links,
messages and bursts in `rps_jax.colocation`. What was dropped is kept as a trace, and a model is
trained under it.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from data import Source
from launch.bed import Bed, Link
from launch.benchmarks.beds import check_bed
from launch.benchmarks.colocation.config import PACING, Way
from launch.benchmarks.colocation.config import ColocationConfig as ColocationConfig
from launch.benchmarks.colocation.measure import measure, simulated, summary
from launch.benchmarks.colocation.report import draw, table
from launch.benchmarks.colocation.training import final_losses, save_trace
from launch.benchmarks.group import Group
from launch.benchmarks.results import Row, write_results
from launch.benchmarks.wire import join, start_workers
from launch.benchmarks.worker import UDP
from launch.cli.command_line import check_untouched, exactly, expect, read_command, split_arguments
from launch.colocation.options import refusals
from launch.config import ONE_RUN_FLAGS, PRESETS, parse
from launch.tasks.source import find_source
from launch.trainer.writing import check_can_write


def run(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    own, flags = split_arguments(argv)
    config = read_command(ColocationConfig, "launch.bench colocation", own, ColocationConfig())
    source = _check(config, flags)
    check_bed("colocation", config.congestion_control)
    link = Link(rate=1e6 * config.rate, queue_seconds=config.queue_ms / 1000)
    found: dict[tuple[float, Way], list[Row]] = {}
    with (
        Bed(config.num_workers, link, config.congestion_control) as bed,
        start_workers(bed, config.num_parameters) as workers,
        Group(bed, "launch.benchmarks.web", message_bytes=config.message_bytes) as web,
    ):
        used = bed.used_congestion_control()
        join(workers, link_rate=PACING * link.rate, lower_effort=True, record=True)
        for key, row in measure(config, bed, workers, web):
            found.setdefault(key, []).append(row)
    config.output_dir.mkdir(parents=True, exist_ok=True)
    measured = {
        (web_load, way): {
            "web_load": web_load,
            "way": way.name,
            **summary(several),
            **simulated(config, web_load, way),
        }
        for (web_load, way), several in found.items()
    }
    # What has been measured is there whatever becomes of the trainings.
    _write(config, measured, {}, flags, used)
    losses = _losses(config, [*flags, "--num-workers", str(config.num_workers)], source, found)
    print(_write(config, measured, losses, flags, used))
    print(f"results in {config.output_dir}/")
    return 0


def _write(
    config: ColocationConfig,
    measured: Mapping[tuple[float, Way], Row],
    losses: Mapping[tuple[float, Way], list[float] | None],
    flags: list[str],
    used: str,
) -> str:
    """Writes table, picture and numbers; returns the table."""
    rows = [{**row, "train_loss": losses.get(key)} for key, row in measured.items()]
    text = table(config, rows)
    (config.output_dir / "table.md").write_text(text)
    draw(config, rows, config.output_dir / "colocation.png")
    numbers = config.output_dir / "run.json"
    write_results(numbers, "colocation", config, rows, flags, congestion_control=used)
    return text


def _check(config: ColocationConfig, flags: list[str]) -> Source:
    """Returns the data of the trainings."""
    base = parse(flags)
    ours = ("num_workers", "channel", "drop_rate", "seed", "output_dir", "resume")
    check_untouched(base, PRESETS[base.preset], (*ours, *ONE_RUN_FLAGS))
    check_can_write("output_dir", config.output_dir)
    for web_load in config.web_loads:
        together = web_load + config.training_load
        expect("web_loads", web_load, together < 1, f"below {1 - config.training_load:g}, the rest")
        load = ("training_load", config.training_load)
        size, seconds = ("num_parameters", config.num_parameters), ("seconds", config.seconds)
        with refusals(pacing_mbps=load, jitter_ms=size, duration=seconds):
            config.settings(web_load).check()
    return find_source(dataclasses.replace(base, num_workers=config.num_workers))


def _losses(
    config: ColocationConfig,
    flags: list[str],
    source: Source,
    found: Mapping[tuple[float, Way], list[Row]],
) -> dict[tuple[float, Way], list[float] | None]:
    """Returns what a training comes to under the drops of each setting, a seed each."""
    traces: dict[tuple[float, Way], Path | None] = {}
    for (web_load, way), several in found.items():
        if way.training == UDP:
            path = config.output_dir / f"trace-{exactly(web_load)}-{way.short}.npz"
            save_trace(path, several)
            traces[web_load, way] = path
        elif way.training:
            traces[web_load, way] = None
    drops = list(dict.fromkeys(traces.values()))
    folder = config.output_dir / "runs"
    losses = final_losses(folder, flags, source, drops, config.training_seeds)
    return {key: losses[drops.index(traces[key])] if key in traces else None for key in found}
