"""The training run: from a checked configuration to a folder of results, in named phases.

Every process of a job runs all of this, in step with the others. Process 0 alone writes metrics and
pictures, and speaks.
"""

import contextlib
import math
import shlex
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import rps_jax as rps
from data import DataError, Source, partition
from launch.channels import make_channel
from launch.cli.command_line import DIVERGED, CommandError, UsageError
from launch.config import CONFIG_FILE, TrainConfig, check_unchanged, deciding, make_rule
from launch.distributed.consistency import (
    check_consistency,
    check_shared,
    digest_of,
    refuse_together,
)
from launch.reports.progress import Progress
from launch.tasks import make_task
from launch.tasks.source import check_packets, of_flag
from launch.trainer.checkpoints import Checkpoints, Saved
from launch.trainer.json_files import is_count, is_number
from launch.trainer.metrics import RunMetrics, Summary, Window, setting
from launch.trainer.preemption import Deadline, Stopped, StopSignals
from launch.trainer.programs import Programs, make_optimizer, named_key
from launch.trainer.resize import resized
from launch.trainer.run_directory import RunDirectory, only_writer
from launch.trainer.shards import deal


class Diverged(CommandError):
    """The training has left the finite numbers; the message says when, and what is kept."""

    exit_status = DIVERGED


def train(config: TrainConfig, source: Source, output_dir: Path) -> Summary | None:
    """Runs a training from its start, or from the newest checkpoint, to its end.

    Args:
        config: A checked configuration.
        source: The data, found and checked.
        output_dir: Where the results go; new, or that of the run to resume. Where there are several
            processes, that of process 0 counts.

    Returns:
        The summary that process 0 writes to `summary.json`; None on all others.

    Raises:
        UsageError: The devices cannot hold the workers, the data are damaged, or not those of the
            run to resume, or the processes were not given the same.
        CheckpointError: A checkpoint cannot be written, or cannot be used.
        Diverged: The loss or a model is not finite.
        Stopped: SIGTERM, Ctrl-C or a time limit; a checkpoint was saved.
    """
    summaries = train_together([config], source, [output_dir])
    return summaries[0] if summaries else None


def train_together(
    configs: Sequence[TrainConfig],
    source: Source,
    output_dirs: Sequence[Path],
    checkpoints: Checkpoints | None = None,
    deadline: Deadline | None = None,
) -> list[Summary]:
    """Runs trainings that differ in their drop rates only, as one program; otherwise as `train`.

    Each worker has a model of each run, and takes all their steps at once, on the same examples: a
    device that one run leaves idle does more.

    Args:
        configs: Checked configurations.
        source: The data of them all.
        output_dirs: Where the results of each go.
        checkpoints: Those of them all together; by default in the first folder.
        deadline: When to stop with a checkpoint; by default never.

    Returns:
        The summaries on process 0; none on all others.
    """
    run = Training(configs, source, output_dirs, checkpoints, deadline or Deadline(None))
    with run.only_writer():
        if configs[0].resume:
            run.resume()
        else:
            run.begin()
        run.loop()
        return run.finish()


class Training:
    """Runs that are trained together, one as a rule, and where they are."""

    def __init__(
        self,
        configs: Sequence[TrainConfig],
        source: Source,
        output_dirs: Sequence[Path],
        checkpoints: Checkpoints | None,
        deadline: Deadline,
    ) -> None:
        """Sets up all that does not depend on where the runs are; writes nothing."""
        self._began = time.perf_counter()
        self._deadline = deadline
        # What they have in common; whatever reads a drop rate asks the records.
        self._config = config = configs[0]
        self._first_process = jax.process_index() == 0
        self._description = source.description

        # Where the workers are, what they lose, and what they learn from.
        try:
            self._mesh = rps.worker_mesh(config.num_workers, config.workers_per_device)
        except ValueError as error:
            raise UsageError(f"the devices cannot hold the workers: {error}") from None
        channels = [make_channel(config) for config in configs]
        try:
            dataset = source.load()
        except DataError as error:
            raise of_flag(config, error) from error
        self._data_digest = digest_of(dataset)
        data = f"{source.description} {self._data_digest}"
        self._records = [
            RunMetrics(config, RunDirectory(check_consistency(config, data, output_dir)))
            for config, output_dir in zip(configs, output_dirs, strict=True)
        ]
        self._checkpoints = checkpoints or Checkpoints(self._records[0].folder.checkpoints)
        self._checkpoints.holds = lambda values: _is_progress(values, len(configs))
        self._task = make_task(config, dataset)
        labels = dataset.train[dataset.label_key]
        parts = partition(
            labels, config.num_workers, label_skew=config.label_skew, seed=config.seed
        )
        test_rows = np.arange(len(dataset.test[dataset.label_key]))
        self._train_shards = deal(self._mesh, dataset.train, parts)
        self._test_shards = deal(
            self._mesh, dataset.test, np.array_split(test_rows, config.num_workers)
        )
        self._steps_per_epoch = min(self._train_shards.sizes) // config.batch_size
        self._total_steps = self._steps_per_epoch * config.epochs
        self._say(
            f"{self._task.model_name} on {source.description}, {source.num_train:,} training "
            f"examples\n{'; '.join(map(setting, configs))}, on {_devices(self._mesh)}"
        )

        # What they do.
        optimizer = make_optimizer(config, self._steps_per_epoch)
        self._programs = Programs(
            config, self._mesh, self._task, optimizer, channels, self._steps_per_epoch
        )
        # Run once: compiling it well would take longer than running it.
        init = jax.jit(self._task.init, compiler_options={"xla_backend_optimization_level": 0})
        params, model_state = init(named_key(config.seed, "model"))
        packets = getattr(channels[0], "packets", None)
        if packets is not None:
            check_packets(config, packets, params)

        # Where the run is.
        self._step = 0
        state = rps.init_train_state(
            params,
            model_state,
            optimizer,
            channels[0],
            config.num_workers,
            config.seed,
            algorithm=make_rule(config),
        )
        self._state = self._mesh.replicate(self._programs.of_all_runs(state))

    @contextlib.contextmanager
    def only_writer(self) -> Iterator[None]:
        """Holds the folders of all runs, on process 0 for all.

        Raises:
            UsageError: Another job writes there, or a new run's folder is not free; on every
                process.
        """
        with contextlib.ExitStack() as held:
            refused = None
            if self._first_process:
                try:
                    for record in self._records:
                        held.enter_context(only_writer(record.folder.path))
                        if not record.config.resume:
                            record.folder.check_is_free()
                except UsageError as error:
                    refused = error
            refuse_together(refused)
            yield

    def begin(self) -> None:
        """Writes down what was asked for."""
        for record in self._records:
            if self._first_process:
                record.folder.create(record.config)
            check_shared(record.folder.path / CONFIG_FILE)

    def resume(self) -> None:
        """Goes back to the newest checkpoint, or to the start if there is none."""
        saved = self._checkpoints.newest(report=self._say)
        if saved is not None:
            if saved.progress["data_digest"] != self._data_digest:
                began = self._records[0].folder.path
                raise UsageError(f"--data-path: expected the data that {began} began with")
            if "deciding" not in saved.progress:
                raise UsageError(
                    f"--output-dir {self._records[0].folder.path}: expected a run of this version "
                    "of rps-jax, found checkpoints of an earlier one"
                )
            then = saved.progress["deciding"]
            for record, before in zip(self._records, then, strict=True):
                check_unchanged(record.config, before, f"the checkpoint in {record.folder.path}")
            self._began -= saved.progress["wall_seconds"]
            if saved.progress["num_workers"] == self._config.num_workers:
                self._step = saved.step
                self._state = self._checkpoints.restore(saved.step, self._state)
                for record, steps in zip(self._records, saved.progress["windows"], strict=True):
                    record.window = Window(steps)
            else:
                self._resume_resized(saved)
        self._say(f"resuming at step {self._step:,} of {self._total_steps:,}")
        if self._first_process:
            for record in self._records:
                record.folder.rewind(self._step / self._steps_per_epoch, report=self._say)

    def _resume_resized(self, saved: Saved) -> None:
        """Goes back to the beginning of the epoch of a checkpoint of another number of workers."""
        before, now = saved.progress["num_workers"], self._config.num_workers
        if not self._config.allow_resize:
            raise UsageError(
                f"--num-workers {now}: expected {before}, as the checkpoint of step {saved.step} "
                "has it (--allow-resize goes on with another number)"
            )
        epochs = saved.step // saved.progress["steps_per_epoch"]
        self._step = epochs * self._steps_per_epoch
        whole = jax.tree.map(
            lambda leaf: np.zeros((before, *leaf.shape[1:]), leaf.dtype), self._state
        )
        whole = self._checkpoints.restore(saved.step, whole)
        mine = resized(whole, self._mesh.local_workers, self._step)
        self._state = self._mesh.put(mine)
        self._say(f"{now} workers go on with what {before} have learned in {epochs} epochs")
        self._checkpoints.save_alone(self._step, self._state, self._progress())
        if self._first_process:
            self._records[0].folder.create(self._config)

    def loop(self) -> None:
        """Trains to the end.

        Raises:
            CheckpointError, Diverged, Stopped: As of `train`.
        """
        config = self._config
        first_step, order = self._step, None
        pending: tuple[rps.StepMetrics, jax.Array] | None = None
        with (
            StopSignals() as interrupts,
            Progress(
                config.epochs, self._steps_per_epoch, first_step, shown=self._first_process
            ) as progress,
        ):
            signals = _Signals(self._mesh)
            while self._step < self._total_steps:
                epoch, step_of_epoch = divmod(self._step, self._steps_per_epoch)
                if order is None or step_of_epoch == 0:
                    order = self._programs.start_epoch(self._train_shards.arrays, epoch)
                previous = pending
                self._state, metrics, signal_of_any = self._programs.train_step(
                    self._state,
                    self._train_shards.arrays,
                    order,
                    signals.of(interrupts.first or self._deadline.signal_number),
                )
                pending = metrics, signal_of_any
                self._step, step_of_epoch = self._step + 1, step_of_epoch + 1

                # The metrics of a step are waited for while the next one runs, unless they are due.
                epoch_ends = step_of_epoch == self._steps_per_epoch
                logs = epoch_ends or step_of_epoch % config.log_every == 0
                signal_number = 0 if previous is None else self._take(previous)
                if logs or signal_number:
                    signal_number = max(signal_number, self._take(pending))
                    pending = None
                elif self._step == first_step + 2:
                    self._restart_clocks()  # The first step was compiled.
                progress.step(self._step)

                if logs:
                    self._measure(epoch_ends, progress)
                last = self._step == self._total_steps
                if signal_number and not last:
                    self._stop(signal_number)
                elif last or (epoch_ends and (epoch + 1) % config.checkpoint_every == 0):
                    self._save()

    def finish(self) -> list[Summary]:
        """Writes the summaries and the pictures on process 0, and returns the summaries there."""
        if not self._first_process:
            return []
        # Each has its share of the time that they took together.
        seconds = (time.perf_counter() - self._began) / len(self._records)
        devices = _devices(self._mesh)
        summaries = [
            record.summarise(self._total_steps, self._task, self._description, devices, seconds)
            for record in self._records
        ]
        for record in self._records:
            record.draw(self._task, self._description)
        return summaries

    def _take(self, pending: tuple[rps.StepMetrics, jax.Array]) -> int:
        """Waits for a step; returns the number of the signal that any process had, or 0."""
        metrics, signal_of_any = jax.device_get(pending)
        losses = np.ravel(metrics.loss)
        delivered = np.mean([np.ravel(phase) for phase in metrics.delivered], axis=0)
        for record, *step in zip(self._records, losses, delivered, strict=True):
            record.window.add(*map(float, step))
            self._check_finite("the training loss", record.window.steps[-1][0])
        return int(signal_of_any)

    def _measure(self, epoch_ends: bool, progress: Progress) -> None:
        """Writes a line of metrics for each run, and shows them."""
        measured = [{"consensus_distance": distance} for distance in self._distances()]
        if epoch_ends:
            found = self._programs.evaluate(self._state, self._train_shards, self._test_shards)
            measured = [a | b for a, b in zip(measured, found, strict=True)]
            for values in found:
                self._check_finite("the mean model's loss", values["mean_model_train_loss"])
                self._check_finite("the mean model's test loss", values["test_loss"])
        epoch = self._step / self._steps_per_epoch
        for record, values in zip(self._records, measured, strict=True):
            line = record.line(self._step, epoch, values)
            if self._first_process:
                record.folder.append(line)
            progress.record(line, record.folder.path.name if len(measured) > 1 else "")

    def _distances(self) -> list[float]:
        """Returns the consensus distance of each run."""
        distances = np.ravel(self._programs.consensus_distance(self._state)).tolist()
        for distance in distances:
            self._check_finite("the consensus distance", distance)
        return distances

    def _restart_clocks(self) -> None:
        for record in self._records:
            record.window.restart_clock()

    def _check_finite(self, what: str, value: float) -> None:
        if not math.isfinite(value):
            good = self._checkpoints.steps()
            kept = f"the checkpoint of step {good[-1]:,} is kept" if good else "no checkpoint yet"
            raise Diverged(
                f"{what} is {value} at step {self._step:,} of {self._total_steps:,}; {kept}; a "
                "smaller --learning-rate or a --clip-norm may help"
            )

    def _save(self) -> None:
        self._checkpoints.save(self._step, self._state, self._progress())
        self._restart_clocks()

    def _progress(self) -> dict[str, Any]:
        return {
            "num_workers": self._config.num_workers,
            "steps_per_epoch": self._steps_per_epoch,
            "windows": [record.window.steps for record in self._records],
            "wall_seconds": time.perf_counter() - self._began,
            "data_digest": self._data_digest,
            "deciding": [deciding(record.config) for record in self._records],
        }

    def _stop(self, signal_number: int) -> None:
        """Saves a checkpoint, and ends the run; every process does so at the same step."""
        self._distances()  # A model that is not finite is no checkpoint.
        self._save()
        folder = self._records[0].folder
        raise Stopped(
            signal_number,
            f"at step {self._step:,} of {self._total_steps:,}, with a checkpoint",
            f"python -m launch.train --resume --output-dir {shlex.quote(str(folder.path))}",
            said=self._first_process,
        )

    def _say(self, text: str) -> None:
        if self._first_process:
            print(text, flush=True)


def _is_progress(values: dict[str, Any], num_runs: int) -> bool:
    """Returns whether these are values that `Training` saves beside the state of its runs."""
    windows, settings = values.get("windows"), values.get("deciding", [{}] * num_runs)
    return (
        all(is_count(values.get(key)) and values[key] for key in ("num_workers", "steps_per_epoch"))
        and isinstance(values.get("data_digest"), str)
        and is_number(values.get("wall_seconds"))
        and isinstance(settings, list)
        and isinstance(windows, list)
        and len(settings) == len(windows) == num_runs
        and all(isinstance(setting, dict) for setting in settings)
        and all(isinstance(steps, list) and all(map(_is_step, steps)) for steps in windows)
    )


def _is_step(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(is_number, value))


class _Signals:
    """What the workers of this process pass on to all: the number of a signal, or 0."""

    def __init__(self, mesh: rps.WorkerMesh) -> None:
        self._mesh = mesh
        self._on_devices: dict[int, jax.Array] = {}

    def of(self, number: int) -> jax.Array:
        """Returns the number for each worker; put on the devices once, not at every step."""
        if number not in self._on_devices:
            rows = np.full(len(self._mesh.local_workers), number, np.int32)
            self._on_devices[number] = self._mesh.put(rows)
        return self._on_devices[number]


def _devices(mesh: rps.WorkerMesh) -> str:
    devices = f"{mesh.mesh.size} x {mesh.mesh.devices.flat[0].device_kind}"
    processes = jax.process_count()
    return devices if processes == 1 else f"{devices} in {processes} processes"
