"""What a benchmark leaves for machines: its numbers, and how they were made."""

import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launch.cli.command_line import expect
from launch.json_objects import write_json
from launch.reports.provenance import command_line, machine, versions
from launch.trainer.writing import check_can_write

Row = dict[str, Any]


def check_results(path: Path | None) -> None:
    """Raises `UsageError` if `--json` is no file that can be written."""
    if path is not None:
        expect("json", path, not os.path.isdir(path), "a file")
        check_can_write("json", path.parent if os.path.exists(path) else path)


def device() -> dict[str, Any]:
    """Returns what JAX computes on, and in which precision products of float32 are, if set."""
    import jax

    precision = jax.config.values["jax_default_matmul_precision"]
    return {"device": jax.devices()[0].device_kind, "matmul_precision": precision}


def median_ratio(measured: Sequence[float], plain: Sequence[float]) -> float:
    """Returns the median of the ratios of what was measured in turn, round by round."""
    return statistics.median(a / b for a, b in zip(measured, plain, strict=True))


def write_results(
    path: Path | None,
    command: str,
    config: Any,
    rows: list[Row],
    flags: Sequence[str] = (),
    **others: Any,
) -> None:
    """Writes a benchmark's numbers as one JSON object.

    Args:
        path: The file; None for none.
        command: Subcommand of launch.bench.
        config: Its options.
        rows: The numbers.
        flags: Of launch.train, which came after "--".
        **others: What else there is to say.
    """
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    line = command_line(f"launch.bench {command}", config, ("json", "output_dir"), flags)
    made = {"command": line, "machine": machine(), "versions": versions("jax", "numpy")}
    write_json(path, {**made, **others, "rows": rows})
