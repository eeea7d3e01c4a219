"""Several trainings one after the other, of which none that is done is repeated."""

import dataclasses
import json
import shutil
from collections.abc import Sequence
from typing import Any

from data import Source
from launch.command_line import UsageError
from launch.config import CONFIG_FILE, MAY_CHANGE_ON_RESUME, TrainConfig, to_json
from launch.devices import start_devices
from launch.interrupts import Stopped
from launch.run_folder import RunFolder


def train_all(
    runs: Sequence[TrainConfig],
    source: Source,
    *,
    keep_checkpoints: bool = True,
    may_diverge: bool = False,
) -> list[list[dict[str, Any]]]:
    """Trains what is not trained yet, going on with a run that was stopped.

    Args:
        runs: Configurations with an `output_dir` each, of the same number of workers.
        source: The data of them all.
        keep_checkpoints: Whether a run that is done keeps its checkpoints.
        may_diverge: Whether to go on with the next where one diverges, which has no summary then.

    Returns:
        The lines of metrics of each.

    Raises:
        UsageError: A run of the same folder was made with other flags.
        Diverged: A run has left the finite numbers.
        Stopped: By a signal, or a time limit; the next call goes on.
    """
    for run in runs:
        _check_same(run)
    start_devices(runs[0].num_workers, runs[0].workers_per_device)
    # Imported late: it takes seconds, and a mistake in the flags has been found by now.
    from launch.training import Diverged, train

    folders = [folder_of(run) for run in runs]
    for number, (run, folder) in enumerate(zip(runs, folders, strict=True), start=1):
        if not folder.summary.exists():
            print(f"\n[{number}/{len(runs)}] {folder.path.name}{_to_go(folders)}", flush=True)
            begun = (folder.path / CONFIG_FILE).exists()
            try:
                train(dataclasses.replace(run, resume=begun), source, folder.path)
            except Stopped as stopped:
                where = f"{stopped.where}, in run {number} of {len(runs)}"
                raise Stopped(stopped.signal_number, where, "the same command") from None
            except Diverged as diverged:
                if not may_diverge:
                    raise
                print(diverged)
        if not keep_checkpoints:
            shutil.rmtree(folder.checkpoints, ignore_errors=True)
    return [folder.read_metrics() for folder in folders]


def folder_of(run: TrainConfig) -> RunFolder:
    """Returns the folder of a run."""
    assert run.output_dir is not None
    return RunFolder(run.output_dir)


def _to_go(folders: Sequence[RunFolder]) -> str:
    """Returns how long all runs will take together that are not done, as those that are did."""
    took = [f.read_summary()["wall_seconds"] for f in folders if f.summary.exists()]
    if not took:
        return ""
    seconds = (len(folders) - len(took)) * sum(took) / len(took)
    return f", about {seconds / 60:.0f} min to go"


def _check_same(run: TrainConfig) -> None:
    """Raises if a run of this name was made with flags that give another result."""
    path = folder_of(run).path / CONFIG_FILE
    if path.exists():
        stored, asked = json.loads(path.read_text()), to_json(run)
        for key in asked.keys() - set(MAY_CHANGE_ON_RESUME):
            if stored.get(key) != asked[key]:
                flag = "--" + key.replace("_", "-")
                raise UsageError(f"{flag} {asked[key]}: expected {stored.get(key)}, as in {path}")
