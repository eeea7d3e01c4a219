r"""Measures training steps whose exchange runs beside the local step, over links of a given rate.

    python -m launch.bench overlap --rates 1000 -- --preset atis-lstm --data-path ATIS

The hosts are network namespaces on one switch (`launch.bed`), a worker each. The alternatives take
turns, a few steps each; a step lasts as long as that of the slowest worker. What follows `--` are
flags of `launch.train`.
"""

import dataclasses
import secrets
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from launch.bed import Bed, Link
from launch.benchmarks.beds import check_bed
from launch.benchmarks.group import Group
from launch.benchmarks.overlap_worker import WAYS, of_way
from launch.benchmarks.results import Row, check_results, median_ratio, write_results
from launch.cli.command_line import Count, Within, check_untouched, read_command, split_arguments
from launch.config import ONE_RUN_FLAGS, PRESETS, parse
from launch.tasks.source import find_source

_TURN = 5
"""Steps before it is the next alternative's turn."""
_LINK_SHARE = 0.98
"""Of a link's rate, what workers send over UDP."""
_OURS = ("algorithm", "num_workers", "channel", "drop_rate", "output_dir", "resume")
"""Fields of flags of launch.train that the command decides itself."""


@dataclasses.dataclass(frozen=True)
class OverlapConfig:
    """Measure training steps whose exchange runs beside the local step.

    Flags of launch.train follow after " -- ". Needs Linux, root, and the commands `ip` and `tc`.
    """

    rates: Annotated[tuple[float, ...], Within(1, 10_000)] = (1000, 200)
    """Of every host's link, in each direction; Mbps."""
    num_workers: Annotated[int, Within(2, 64)] = 2
    """Hosts, a worker each."""
    rounds: Count = 7
    """Turns of each alternative, of five steps each."""
    json: Path | None = None
    """File for the results, for machines."""


def run(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    own, of_training = split_arguments(argv)
    config = read_command(OverlapConfig, "launch.bench overlap", own, OverlapConfig())
    check_results(config.json)
    base = parse(of_training)
    check_untouched(base, PRESETS[base.preset], (*_OURS, *ONE_RUN_FLAGS))
    of_ways = [of_way(way, of_training, config.num_workers) for way in WAYS]
    check_bed("overlap", None)
    find_source(of_ways[0])
    print(f"{'Mbps':>6}  {'':<22}{'median ms':>10}  {'over no exchange':>16}")
    rows: list[Row] = []
    for rate in config.rates:
        rows += _measure(config, rate, of_training)
    write_results(config.json, "overlap", config, rows, of_training)
    return 0


def _measure(config: OverlapConfig, rate: float, of_training: Sequence[str]) -> list[Row]:
    """Returns a row for each alternative at a rate, and prints it."""
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    with (
        Bed(config.num_workers, Link(rate=1e6 * rate)) as bed,
        Group(
            bed,
            "launch.benchmarks.overlap_worker",
            flags=list(of_training),
            key=secrets.token_hex(32),
            link_rate=_LINK_SHARE * 1e6 * rate,
        ) as workers,
    ):
        for turn in range(config.rounds + 1):
            for way, measured in seconds.items():
                slowest = max(workers.ask("steps", way=way, count=_TURN))
                if turn:  # The first is the warm-up.
                    measured.append(slowest)
        size = workers.ask("num_parameters")[0]
    alone = seconds["no exchange"]
    rows = []
    for way, measured in seconds.items():
        ratio = median_ratio(measured, alone)
        print(f"{rate:>6g}  {way:<22}{1e3 * statistics.median(measured):>10.1f}  {ratio:>16.2f}")
        row: Row = {"mbps": rate, "num_parameters": size, "alternative": way, "ratio": ratio}
        rows.append({**row, "milliseconds": [1e3 * value for value in measured]})
    return rows
