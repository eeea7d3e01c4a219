"""Several trainings one after the other or together, of which none that is done is repeated."""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data import Source
from launch.command_line import UsageError
from launch.config import CONFIG_FILE, MAY_CHANGE_ON_RESUME, TrainConfig, to_json
from launch.devices import start_devices
from launch.interrupts import Stopped
from launch.run_folder import CHECKPOINTS, RunFolder


def train_all(
    runs: Sequence[TrainConfig],
    source: Source,
    *,
    together: int = 1,
    keep_checkpoints: bool = True,
    may_diverge: bool = False,
) -> list[list[dict[str, Any]]]:
    """Trains what is not trained yet, going on with a run that was stopped.

    Args:
        runs: Configurations with an `output_dir` each, of the same number of workers.
        source: The data of them all.
        together: How many runs that differ in their drop rates only to train as one program.
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
    from launch.training import Diverged, train_together

    folders = [folder_of(run) for run in runs]
    for group in _groups([run for run in runs if not folder_of(run).summary.exists()], together):
        names = ", ".join(folder_of(run).path.name for run in group)
        place = f"{runs.index(group[0]) + 1}/{len(runs)}"
        print(f"\n[{place}] {names}{_to_go(folders)}", flush=True)
        begun = all((folder_of(run).path / CONFIG_FILE).exists() for run in group)
        configs = [dataclasses.replace(run, resume=begun) for run in group]
        checkpoints = _checkpoints(group)
        try:
            train_together(configs, source, [folder_of(run).path for run in group], checkpoints)
        except Stopped as stopped:
            where = f"{stopped.where}, in run {place}"
            raise Stopped(stopped.signal_number, where, "the same command") from None
        except Diverged as diverged:
            if not may_diverge:
                raise
            print(diverged)
        if not keep_checkpoints:
            shutil.rmtree(checkpoints, ignore_errors=True)
    return [folder.read_metrics() for folder in folders]


def _groups(runs: Sequence[TrainConfig], most: int) -> list[list[TrainConfig]]:
    """Returns the runs in groups that can be trained together, in the order of their first."""
    alike: dict[str, list[list[TrainConfig]]] = {}
    for run in runs:
        common = to_json(run) | {"drop_rate": None, "output_dir": None}
        groups = alike.setdefault(json.dumps(common, sort_keys=True), [])
        if not groups or len(groups[-1]) == most:
            groups.append([])
        groups[-1].append(run)
    found = [group for groups in alike.values() for group in groups]
    return sorted(found, key=lambda group: runs.index(group[0]))


def _checkpoints(group: Sequence[TrainConfig]) -> Path:
    """Returns the folder of the checkpoints of runs that are trained together."""
    first = folder_of(group[0])
    if len(group) == 1:
        return first.checkpoints
    names = " ".join(folder_of(run).path.name for run in group)
    return first.path.parent / f"{CHECKPOINTS}-{hashlib.sha256(names.encode()).hexdigest()[:8]}"


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
