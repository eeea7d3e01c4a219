"""A run's folder: what was asked for, what was measured, and what came of it."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from launch.cli.command_line import UsageError, refuse
from launch.config import CONFIG_FILE, TrainConfig, to_json

METRICS_FILE, SUMMARY_FILE, CURVES_FILE = "metrics.jsonl", "summary.json", "curves.png"
CHECKPOINTS = "checkpoints"
EPOCH_DIGITS = 6
"""Of the epoch in a line of metrics, after the point."""


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

    def create(self, config: TrainConfig) -> None:
        """Makes the folder and writes down what was asked for."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.path / CONFIG_FILE, to_json(config))

    def append(self, line: dict[str, Any]) -> None:
        """Adds a line of metrics."""
        with self.metrics.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def read_metrics(self) -> list[dict[str, Any]]:
        """Returns all whole lines of metrics; a run that was killed may have cut the last."""
        lines = []
        if self.metrics.exists():
            for text in self.metrics.read_text(errors="replace").splitlines():
                try:
                    lines.append(json.loads(text))
                except ValueError:
                    break
        return lines

    def read_summary(self) -> dict[str, Any]:
        """Returns the summary of a run that is done."""
        values: dict[str, Any] = json.loads(self.summary.read_text())
        return values

    def rewind(self, epoch: float) -> None:
        """Drops the metrics of what comes after `epoch` and is about to be trained again."""
        epoch = round(epoch, EPOCH_DIGITS)
        kept = [line for line in self.read_metrics() if line["epoch"] <= epoch]
        text = "".join(json.dumps(line) + "\n" for line in kept)
        _write(self.metrics, text)


def check_can_write(name: str, folder: Path) -> None:
    """Raises `UsageError` for the flag `name` if nothing can be written to its folder.

    Found out by writing, under a name of its own: permissions do not tell of a read-only or special
    file system, and processes of one job that do the same must not meet.
    """
    path = folder.absolute()
    # A link that leads nowhere is there, too, and no folder can take its name.
    parent = next(p for p in (path, *path.parents) if os.path.lexists(p))
    try:
        with tempfile.TemporaryDirectory(dir=parent) as trial:
            (Path(trial) / path.relative_to(parent)).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        refuse(name, folder, f"a folder that can be written ({error.strerror})")


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Writes a JSON file, whole or not at all."""
    _write(path, json.dumps(values, indent=2) + "\n")


def _write(path: Path, text: str) -> None:
    unfinished = path.with_name(path.name + ".tmp")
    unfinished.write_text(text)
    os.replace(unfinished, path)
