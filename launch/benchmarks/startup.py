"""Measures how long a training takes to begin: from the command to its first finished step.

The step counts as finished when its line of metrics is written, which takes one more program. Every
other command finds the compiled programs of the one before.
"""

import dataclasses
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from launch.benchmarks.results import Row, check_results, write_results
from launch.cli.command_line import CommandError, Count, Within, expect, read_command
from launch.config import PRESETS
from launch.trainer.run_directory import RunDirectory

_POLL_SECONDS = 0.01


@dataclasses.dataclass(frozen=True)
class StartupConfig:
    """Measure how long a training takes from its command to its first finished step."""

    processes: Annotated[tuple[int, ...], Within(1, 64)] = (1, 2)
    """Processes of the job: of 1, launch.train; of more, launch.local."""
    rounds: Count = 3
    """How often each is started without compiled programs, and with them."""
    json: Path | None = None
    """File for the results, for machines."""


def run(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    config = read_command(StartupConfig, "launch.bench startup", argv, StartupConfig())
    check_results(config.json)
    workers = PRESETS["digits"].num_workers
    for processes in config.processes:
        divides = workers % processes == 0
        expect("processes", processes, divides, f"divisors of {workers} workers")
    print(f"{'processes':>9}  {'programs':<8}  {'median s':>8}")
    rows = []
    for processes in config.processes:
        seconds = [_start_twice(processes) for _ in range(config.rounds)]
        for programs, measured in zip(("none", "kept"), zip(*seconds, strict=True), strict=True):
            median = statistics.median(measured)
            print(f"{processes:>9}  {programs:<8}  {median:>8.2f}", flush=True)
            row: Row = {"processes": processes, "programs": programs, "seconds": list(measured)}
            rows.append(row)
    write_results(config.json, "startup", config, rows)
    return 0


def _start_twice(processes: int) -> tuple[float, float]:
    """Returns the seconds to the first step without compiled programs, and with them."""
    with tempfile.TemporaryDirectory() as folder:
        first, second = (_start(processes, Path(folder), name) for name in ("first", "second"))
        return first, second


def _start(processes: int, folder: Path, name: str) -> float:
    """Starts a training, and ends it after its first step; returns the seconds to it."""
    directory = RunDirectory(folder / name)
    launcher = ["launch.train"] if processes == 1 else ["launch.local", "--processes", processes]
    flags = ["--log-every", 1, "--output-dir", directory.path]
    command = [sys.executable, "-m", *launcher, *["--"] * (processes > 1), *flags]
    log = folder / f"{name}.log"
    with log.open("wb") as said:
        began = time.perf_counter()
        process = subprocess.Popen(
            [*map(str, command)],
            env={**os.environ, "JAX_COMPILATION_CACHE_DIR": str(folder / "programs")},
            stdout=said,
            stderr=said,
        )
        try:
            while not (directory.metrics.exists() and directory.metrics.stat().st_size):
                if process.poll() is not None:
                    *_, last = log.read_text().splitlines() or ["it said nothing"]
                    raise CommandError(f"a training failed: {last}")
                time.sleep(_POLL_SECONDS)
            return time.perf_counter() - began
        finally:
            process.terminate()
            process.wait()
