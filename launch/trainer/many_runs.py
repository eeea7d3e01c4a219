"""Several trainings one after the other, of which none that is done is repeated."""

import contextlib
import dataclasses
import shutil
from collections.abc import Sequence
from typing import Any

from data import Source
from launch.cli.command_line import UsageError
from launch.config import TrainConfig, stored_config
from launch.config_file import CONFIG_FILE, check_unchanged, deciding
from launch.distributed.devices import start_devices
from launch.trainer.preemption import Deadline, Stopped
from launch.trainer.run_directory import SUMMARY_FILE, RunDirectory
from launch.trainer.writing import check_can_write, only_writer

_SAME_COMMAND = "the same command"


def train_all(
    runs: Sequence[TrainConfig],
    source: Source,
    *,
    deadline: Deadline | None = None,
    keep_checkpoints: bool = True,
    may_diverge: bool = False,
) -> list[list[dict[str, Any]]]:
    """Trains what is not trained yet, going on with a run that was stopped.

    Args:
        runs: Configurations with an `output_dir` each, of the same number of workers.
        source: The data of them all.
        deadline: When to stop with a checkpoint; by default never.
        keep_checkpoints: Whether a run that is done keeps its checkpoints; if not, one that is
            under way has only its newest.
        may_diverge: Whether to go on with the next where one diverges; it has no summary then, and
            is trained again by the next call.

    Returns:
        The lines of metrics of each.

    Raises:
        UsageError: Two runs have one folder, or a run there was made with other flags or other
            data, or is damaged, or another process writes there.
        Diverged: A run has left the finite numbers.
        Stopped: By a signal, or the deadline; the next call goes on.
    """
    deadline = deadline or Deadline(None)
    folders = [folder_of(run) for run in runs]
    _check_apart(folders)
    for run, folder in zip(runs, folders, strict=True):
        check_can_write("output_dir", folder.path)
        _check_same(run, source)
    with contextlib.ExitStack() as held:
        for parent in sorted({folder.path.absolute().parent for folder in folders}):
            held.enter_context(only_writer(parent))
        start_devices(runs[0].num_workers, runs[0].workers_per_device)
        # Imported late: it takes seconds, and a mistake in the flags has been found by now.
        from launch.trainer.checkpoints import Checkpoints
        from launch.trainer.recorder import Diverged
        from launch.trainer.training import train

        for number, (run, folder) in enumerate(zip(runs, folders, strict=True), 1):
            if folder.is_done:
                continue
            place = f"{number}/{len(runs)}"
            if signal_number := deadline.signal_number:
                raise Stopped(signal_number, f"before run {place}", _SAME_COMMAND)
            print(f"\n[{place}] {folder.path.name}{_to_go(folders)}", flush=True)
            begun = bool(Checkpoints(folder.checkpoints).steps())
            if not begun:
                folder.clear()
            try:
                train(
                    dataclasses.replace(run, resume=begun),
                    source,
                    folder.path,
                    keep_checkpoints=3 if keep_checkpoints else 1,
                    deadline=deadline,
                )
            except Stopped as stopped:
                where = f"{stopped.where}, in run {place}"
                raise Stopped(stopped.signal_number, where, _SAME_COMMAND) from None
            except Diverged as diverged:
                said = f"{folder.path.name}: {diverged}"
                if not may_diverge:
                    raise Diverged(said) from None
                print(said)
            if not keep_checkpoints:
                shutil.rmtree(folder.checkpoints, ignore_errors=True)
    return [folder.read_metrics() for folder in folders]


def folder_of(run: TrainConfig) -> RunDirectory:
    """Returns the folder of a run."""
    assert run.output_dir is not None
    return RunDirectory(run.output_dir)


def ends_of_epochs(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the lines of metrics at the ends of epochs."""
    return [line for line in lines if "mean_model_train_loss" in line]


def _check_apart(folders: Sequence[RunDirectory]) -> None:
    """Raises if two runs have the same folder: one would be taken for the other."""
    paths = [folder.path.absolute() for folder in folders]
    for path in paths:
        if paths.count(path) > 1:
            raise UsageError(f"{path}: expected a folder for each run, found two runs of this name")


def _to_go(folders: Sequence[RunDirectory]) -> str:
    """Returns how long all runs will take together that are not done, as those that are did."""
    took = [f.read_summary()["wall_seconds"] for f in folders if f.is_done]
    if not took:
        return ""
    seconds = (len(folders) - len(took)) * sum(took) / len(took)
    return f", about {seconds / 60:.0f} min to go"


def _check_same(run: TrainConfig, source: Source) -> None:
    """Raises if a run of this name was made otherwise, or has lost what it has measured.

    Raises:
        UsageError: It has flags that give another result, or other data, or is done and its lines
            of metrics are damaged.
    """
    folder = folder_of(run)
    path = folder.path / CONFIG_FILE
    if path.exists():
        check_unchanged(run, deciding(stored_config(folder.path)), f"the run in {folder.path}")
    if not folder.is_done:
        return
    summary = folder.read_summary()
    if (data := summary["data"]) != source.description:
        raise UsageError(f"--data-path: expected {data}, as in {path}, found {source.description}")
    damage: list[str] = []
    lines, step = folder.read_metrics(damage.append), summary.get("step")
    if damage or not lines or lines[-1]["step"] != step:
        raise UsageError(
            f"{folder.metrics}: expected whole lines up to step {step}, as {SUMMARY_FILE} has it"
        )
