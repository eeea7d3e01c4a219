"""What every figure says: means with their confidence, tables of numbers, and the machine."""

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


def interval(values: Sequence[float] | np.ndarray) -> Interval:
    """Returns the mean of a value a seed, and how sure it is."""
    n = len(values)
    if n < 2:
        return Interval(float(values[0]), float("nan"))
    return Interval(float(np.mean(values)), half_width(np.std(values, ddof=1) / n**0.5, n))


def half_width(standard_error: float, n: int) -> float:
    """Returns the half-width of the 95% confidence interval of a mean of n values."""
    return float(stats.t.ppf(0.975, n - 1) * standard_error)


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Writes rows of one shape."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def machine() -> str:
    """Returns the processor's name, where the system tells, and how many cores it has."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return f"{next(names, platform.machine())}, {os.cpu_count()} cores"


def versions(*packages: str) -> dict[str, str]:
    """Returns the versions of Python and of some packages."""
    return {name: version(name) for name in packages} | {"python": platform.python_version()}


def command_line(module: str, config: Any, leave_out: Sequence[str]) -> str:
    """Returns the command that a configuration is of, with all its options.

    Args:
        module: What is run, as in `python -m MODULE`.
        config: A dataclass, a field a flag.
        leave_out: Fields that do not decide the result.
    """
    options = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name not in leave_out and value is not None:
            values = value if isinstance(value, tuple) else (value,)
            shown = (str(x).removesuffix(".0") for x in values)
            options += [f"--{field.name.replace('_', '-')}", *shown]
    return shlex.join(["python", "-m", *module.split(), *options])
