"""Several trainings one after the other, of which none that is done is repeated."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from data import Source
from launch.command_line import UsageError
from launch.config import CONFIG_FILE, TrainConfig, to_json
from launch.devices import start_devices
from launch.run_folder import RunFolder


def train_all(runs: Sequence[TrainConfig], source: Source) -> list[list[dict[str, Any]]]:
    """Trains what is not trained yet, going on with a run that was stopped.

    Args:
        runs: Configurations with an `output_dir` each, of the same number of workers.
        source: The data of them all.

    Returns:
        The lines of metrics of each.

    Raises:
        UsageError: A run of the same folder was made with other flags.
    """
    for run in runs:
        _check_same(run)
    start_devices(runs[0].num_workers, runs[0].workers_per_device)
    # Imported late: it takes seconds, and a mistake in the flags has been found by now.
    from launch.training import train

    for number, run in enumerate(runs, start=1):
        folder = folder_of(run)
        if not folder.summary.exists():
            print(f"\n[{number}/{len(runs)}] {folder.path.name}", flush=True)
            begun = (folder.path / CONFIG_FILE).exists()
            train(dataclasses.replace(run, resume=begun), source, folder.path)
    return [folder_of(run).read_metrics() for run in runs]


def folder_of(run: TrainConfig) -> RunFolder:
    """Returns the folder of a run."""
    assert run.output_dir is not None
    return RunFolder(run.output_dir)


def _check_same(run: TrainConfig) -> None:
    """Raises if a run of this name was made with other flags."""
    path = folder_of(run).path / CONFIG_FILE
    if path.exists():
        stored, asked = json.loads(path.read_text()), to_json(run)
        for key in asked.keys() - {"output_dir"}:
            if stored.get(key) != asked[key]:
                flag = "--" + key.replace("_", "-")
                raise UsageError(f"{flag} {asked[key]}: expected {stored.get(key)}, as in {path}")
