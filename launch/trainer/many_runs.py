"""Several trainings one after the other or together, of which none that is done is repeated."""

import contextlib
import dataclasses
import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data import Source
from launch.cli.command_line import UsageError
from launch.config import (
    CONFIG_FILE,
    TrainConfig,
    check_unchanged,
    deciding,
    stored_config,
    to_json,
)
from launch.distributed.devices import start_devices
from launch.trainer.preemption import Deadline, Stopped
from launch.trainer.run_directory import CHECKPOINTS, RunDirectory, check_can_write, only_writer

_MEMBERS = "runs.txt"
"""Names of the runs whose checkpoints a folder has."""
_SAME_COMMAND = "the same command"


def train_all(
    runs: Sequence[TrainConfig],
    source: Source,
    *,
    together: int = 1,
    deadline: Deadline | None = None,
    keep_checkpoints: bool = True,
    may_diverge: bool = False,
) -> list[list[dict[str, Any]]]:
    """Trains what is not trained yet, going on with a run that was stopped.

    Args:
        runs: Configurations with an `output_dir` each, of the same number of workers.
        source: The data of them all.
        together: How many runs that differ in their drop rates only to train as one program.
        deadline: When to stop with a checkpoint; by default never.
        keep_checkpoints: Whether a run that is done keeps its checkpoints; if not, one that is
            under way has only its newest.
        may_diverge: Whether to go on with the next where one diverges; it has no summary then, and
            is trained again by the next call.

    Returns:
        The lines of metrics of each.

    Raises:
        UsageError: A run of the same folder was made with other flags, or other data, or another
            process writes there.
        Diverged: A run has left the finite numbers.
        Stopped: By a signal, or the deadline; the next call goes on.
    """
    deadline = deadline or Deadline(None)
    folders = [folder_of(run) for run in runs]
    for run, folder in zip(runs, folders, strict=True):
        check_can_write("output_dir", folder.path)
        _check_same(run, source)
    with contextlib.ExitStack() as held:
        for parent in sorted({folder.path.absolute().parent for folder in folders}):
            held.enter_context(only_writer(parent))
        start_devices(runs[0].num_workers, runs[0].workers_per_device)
        # Imported late: it takes seconds, and a mistake in the flags has been found by now.
        from launch.trainer.checkpoints import Checkpoints
        from launch.trainer.training import Diverged, train_together

        for group in _groups([run for run in runs if not folder_of(run).is_done], together):
            names = [folder_of(run).path.name for run in group]
            place = f"{runs.index(group[0]) + 1}/{len(runs)}"
            if number := deadline.signal_number:
                raise Stopped(number, f"before run {place}", _SAME_COMMAND)
            print(f"\n[{place}] {', '.join(names)}{_to_go(folders)}", flush=True)
            checkpoints_dir = _claim_checkpoints(group)
            checkpoints = Checkpoints(checkpoints_dir, keep=3 if keep_checkpoints else 1)
            begun = bool(checkpoints.steps())
            if not begun:
                for run in group:
                    folder_of(run).clear()
            configs = [dataclasses.replace(run, resume=begun) for run in group]
            output_dirs = [folder_of(run).path for run in group]
            try:
                train_together(configs, source, output_dirs, checkpoints, deadline)
            except Stopped as stopped:
                where = f"{stopped.where}, in run {place}"
                raise Stopped(stopped.signal_number, where, _SAME_COMMAND) from None
            except Diverged as diverged:
                said = f"{', '.join(names)}: {diverged}"
                if not may_diverge:
                    raise Diverged(said) from None
                print(said)
            if not keep_checkpoints:
                shutil.rmtree(checkpoints_dir, ignore_errors=True)
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


def _claim_checkpoints(group: Sequence[TrainConfig]) -> Path:
    """Returns the folder of the checkpoints of runs that are trained together.

    Checkpoints of the same runs in other company are deleted: the metrics of a run follow one of
    them only.
    """
    own = [folder_of(run).checkpoints for run in group]
    names = [folder_of(run).path.name for run in group]
    parent = folder_of(group[0]).path.parent
    digest = hashlib.sha256(" ".join(names).encode()).hexdigest()[:8]
    mine = own[0] if len(group) == 1 else parent / f"{CHECKPOINTS}-{digest}"
    shared = [path.parent for path in parent.glob(f"{CHECKPOINTS}-*/{_MEMBERS}")]
    others = [path for path in shared if set(names) & set((path / _MEMBERS).read_text().split())]
    not_ours = {*own, *others} - {mine}
    if not all((folder_of(run).path / CONFIG_FILE).exists() for run in group):
        not_ours.add(mine)  # Left from runs whose folders have been deleted.
    for path in not_ours:
        shutil.rmtree(path, ignore_errors=True)
    if len(group) > 1:
        mine.mkdir(parents=True, exist_ok=True)
        (mine / _MEMBERS).write_text("\n".join(names))
    return mine


def folder_of(run: TrainConfig) -> RunDirectory:
    """Returns the folder of a run."""
    assert run.output_dir is not None
    return RunDirectory(run.output_dir)


def _to_go(folders: Sequence[RunDirectory]) -> str:
    """Returns how long all runs will take together that are not done, as those that are did."""
    took = [f.read_summary()["wall_seconds"] for f in folders if f.is_done]
    if not took:
        return ""
    seconds = (len(folders) - len(took)) * sum(took) / len(took)
    return f", about {seconds / 60:.0f} min to go"


def _check_same(run: TrainConfig, source: Source) -> None:
    """Raises if a run of this name was made with flags that give another result, or other data."""
    folder = folder_of(run)
    path = folder.path / CONFIG_FILE
    if path.exists():
        check_unchanged(run, deciding(stored_config(folder.path)), f"the run in {folder.path}")
    if folder.is_done and (data := folder.read_summary()["data"]) != source.description:
        raise UsageError(f"--data-path: expected {data}, as in {path}, found {source.description}")
