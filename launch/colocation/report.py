"""What a figure leaves behind: how it was made, its numbers, and means with their confidence."""

import csv
import dataclasses
import math
import os
import platform
import shlex
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from launch.run_folder import write_json


class Interval(NamedTuple):
    """A mean over seeds.

    Attributes:
        mean: Of the seeds.
        half_width: Of its 95% confidence interval, by Student's t; nan of a single seed.
    """

    mean: float
    half_width: float

    def __str__(self) -> str:
        if not self.half_width > 0:
            return f"{self.mean:.4g}"
        # Two digits of the half-width, and the mean to the same place.
        places = max(0, 1 - math.floor(math.log10(self.half_width)))
        return f"{self.mean:.{places}f} ± {self.half_width:.{places}f}"


def interval(values: Sequence[float]) -> Interval:
    """Returns the mean of a value a seed, and how sure it is."""
    n = len(values)
    if n < 2:
        return Interval(float(values[0]), float("nan"))
    quantile = stats.t.ppf(0.975, n - 1)
    return Interval(float(np.mean(values)), float(quantile * np.std(values, ddof=1) / n**0.5))


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Writes rows of one shape."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def write_results(
    command: str,
    config: Any,
    simulated: dict[str, Any],
    rows: Sequence[dict[str, Any]],
    table: str,
    flags: Sequence[str] = (),
) -> None:
    """Writes a figure's numbers, its table, and how it was made; prints the table.

    Args:
        command: Of launch.colocate; names the file of numbers.
        config: Its options.
        simulated: Settings of the simulation.
        rows: The numbers, of one shape.
        table: In Markdown.
        flags: Of launch.train, that came after "--".
    """
    folder = config.output_dir
    write_csv(folder / f"{command}.csv", rows)
    (folder / "table.md").write_text(table)
    _write_run(folder, command, config, simulated, flags)
    print(f"{table}\nresults in {folder}/")


def _write_run(
    folder: Path,
    command: str,
    config: Any,
    simulated: dict[str, Any],
    flags: Sequence[str],
) -> None:
    """Writes `run.json`: the command with all its options, the settings, versions, and machine."""
    options = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name in ("processes", "output_dir"):
            continue
        values = value if isinstance(value, tuple) else (value,)
        options += [f"--{field.name.replace('_', '-')}", *(f"{v}" for v in values)]
    if flags:
        options += ["--", *flags]
    write_json(
        folder / "run.json",
        {
            "command": shlex.join(["python", "-m", "launch.colocate", command, *options]),
            "settings": simulated,
            "versions": {name: version(name) for name in ("jax", "numba", "numpy")}
            | {"python": platform.python_version()},
            "machine": f"{_processor()}, {os.cpu_count()} cores",
        },
    )


def _processor() -> str:
    """Returns the processor's name, where the system tells."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
