"""A run's folder: what was asked for, what was measured, and what came of it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from launch.cli.command_line import CommandError, UsageError
from launch.config import TrainConfig
from launch.config_file import CONFIG_FILE, to_json
from launch.json_objects import (
    DamagedError,
    is_count,
    is_number,
    parse_object,
    read_object,
    write_json,
    write_text,
)
from launch.trainer.writing import check_can_write

METRICS_FILE, SUMMARY_FILE, CURVES_FILE = "metrics.jsonl", "summary.json", "curves.png"
CHECKPOINTS = "checkpoints"
EPOCH_DIGITS = 6
"""Decimal places of the epoch in a line of metrics."""

PREDICTED = "consensus_distance_predicted"
"""What a line of metrics has where theory says how far apart drops set the workers."""
_MEASURED = ("train_loss", "delivered_fraction", "examples_per_second", "consensus_distance")
"""What every line of metrics has, beside its step and epoch."""


class RunDirectory:
    """The files of one run."""

    def __init__(self, path: Path) -> None:
        """Names the files; touches none."""
        self.path = path
        self.metrics = path / METRICS_FILE
        self.summary = path / SUMMARY_FILE
        self.curves = path / CURVES_FILE
        self.checkpoints = path / CHECKPOINTS

    def check_is_free(self) -> None:
        """Raises `UsageError` if a new run cannot be put here."""
        check_can_write("output_dir", self.path)
        for name in (CONFIG_FILE, METRICS_FILE, SUMMARY_FILE, CURVES_FILE, CHECKPOINTS):
            if (self.path / name).exists():
                raise UsageError(
                    f"--output-dir {self.path}: expected a new or empty folder, found the "
                    f"{name} of another run (--resume goes on with it)"
                )

    def clear(self) -> None:
        """Deletes what was begun; the next run begins anew."""
        for path in (self.path / CONFIG_FILE, self.metrics, self.summary, self.curves):
            path.unlink(missing_ok=True)
        shutil.rmtree(self.checkpoints, ignore_errors=True)

    def create(self, config: TrainConfig) -> None:
        """Makes the folder and writes down what was asked for."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.path / CONFIG_FILE, to_json(config))

    def append(self, line: dict[str, Any]) -> None:
        """Adds a line of metrics.

        Raises:
            CommandError: It cannot be written.
        """
        try:
            with self.metrics.open("a") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise CommandError(f"{self.metrics}: {error.strerror}") from None

    def read_metrics(self, report: Callable[[str], None] | None = None) -> list[dict[str, Any]]:
        """Returns all whole lines of metrics.

        Args:
            report: Told of each line that is not: a run that was killed may have cut the last.
        """
        try:
            content = self.metrics.read_bytes()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise UsageError(f"{self.metrics}: {error.strerror}") from None
        lines = []
        for number, line in enumerate(content.split(b"\n"), 1):
            if not line:
                continue
            try:
                lines.append(parse_object(line, _is_line_of_metrics))
            except DamagedError as error:
                if report is not None:
                    report(f"line {number} of {self.metrics.name} is damaged ({error})")
        return lines

    @property
    def is_done(self) -> bool:
        """Whether the folder holds a summary, which is written last, and it is whole."""
        try:
            read_object(self.summary, _is_summary)
        except DamagedError:
            return False
        return True

    def read_summary(self) -> dict[str, Any]:
        """Returns the summary of a run that is done.

        Raises:
            UsageError: It is missing or damaged.
        """
        try:
            return read_object(self.summary, _is_summary)
        except DamagedError as error:
            raise UsageError(f"{self.summary}: {error}") from None

    def rewind(self, epoch: float, report: Callable[[str], None]) -> None:
        """Drops the metrics of what comes after `epoch` and is about to be trained again.

        Args:
            epoch: The run goes on from there.
            report: Told, in one line each, of lines that are damaged, and dropped too.
        """
        epoch = round(epoch, EPOCH_DIGITS)
        kept = [line for line in self.read_metrics(report) if line["epoch"] <= epoch]
        write_text(self.metrics, "".join(json.dumps(line) + "\n" for line in kept))


def _is_line_of_metrics(line: dict[str, Any]) -> bool:
    return (
        all(map(_is_measured, line.values()))
        and is_count(line.get("step"))
        and (line.keys() >= {"epoch", *_MEASURED})
    )


def _is_measured(value: Any, axes: int = 3) -> bool:
    """Returns whether a JSON value is a number, or an array of numbers and nulls."""
    if isinstance(value, list) and axes:
        return all(row is None or _is_measured(row, axes - 1) for row in value)
    return is_number(value)


def _is_summary(values: dict[str, Any]) -> bool:
    score = values.get("score")
    return (
        isinstance(score, str)
        and isinstance(values.get("data"), str)
        and all(is_number(values.get(key)) for key in (score, "wall_seconds"))
    )
