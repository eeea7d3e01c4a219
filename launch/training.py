"""The training run: from a checked configuration to a folder of results, in named phases.

Every process of a job runs all of this, in step with the others. Process 0 alone writes metrics and
pictures, and speaks.
"""

import math
import platform
import shlex
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

import rps_jax as rps
from data import DataError, Source, partition
from launch.agreement import agree, check_shared, digest_of
from launch.channels import make_channel
from launch.checkpoints import Checkpoints, Saved
from launch.command_line import DIVERGED, CommandError, UsageError
from launch.config import CONFIG_FILE, LOSSY, TrainConfig
from launch.curves import draw_curves
from launch.interrupts import TO_STOP, Interrupts, Stopped
from launch.programs import Programs, make_optimizer, named_key
from launch.progress import Progress
from launch.resize import resized
from launch.run_folder import EPOCH_DIGITS, RunFolder, write_json
from launch.shards import deal
from launch.source import of_flag
from launch.tasks import Task, make_task


class Diverged(CommandError):
    """The training has left the finite numbers; the message says when, and what is kept."""

    exit_status = DIVERGED


class Window:
    """What happened in the steps since the last line of metrics.

    Attributes:
        steps: `[loss, delivered fraction]` of each; a checkpoint holds them too.
    """

    def __init__(self, steps: list[list[float]]) -> None:
        """Goes on from the steps of an earlier part of the run."""
        self.steps = steps
        self.restart_clock()

    def restart_clock(self) -> None:
        """Leaves out of the throughput whatever happened before now."""
        self._timed_from, self._began = len(self.steps), time.perf_counter()

    def add(self, metrics: rps.StepMetrics) -> None:
        """Waits for the metrics of a step, and adds them."""
        loss, delivered = jax.device_get((metrics.loss, metrics.delivered))
        self.steps.append([float(loss), float(np.mean(delivered))])

    def averages(self, examples_per_step: int) -> dict[str, float]:
        """Returns the means over the steps, and the throughput."""
        examples = (len(self.steps) - self._timed_from) * examples_per_step
        loss, delivered = np.mean(self.steps, axis=0)
        return {
            "train_loss": float(loss),
            "delivered_fraction": float(delivered),
            "examples_per_second": round(examples / (time.perf_counter() - self._began), 1),
        }


def train(config: TrainConfig, source: Source, output_dir: Path) -> dict[str, Any] | None:
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
    run = Training(config, source, output_dir)
    if config.resume:
        run.resume()
    else:
        run.begin()
    run.loop()
    return run.finish()


class Training:
    """A training run, and where it is."""

    def __init__(self, config: TrainConfig, source: Source, output_dir: Path) -> None:
        """Sets up all that does not depend on where the run is; writes nothing."""
        self._began = time.perf_counter()
        self._config = config
        self._first_process = jax.process_index() == 0
        self._description = source.description

        # Where the workers are, what they lose, and what they learn from.
        try:
            self._mesh = rps.worker_mesh(config.num_workers, config.workers_per_device)
        except ValueError as error:
            raise UsageError(f"the devices cannot hold the workers: {error}") from None
        channel = make_channel(config)
        try:
            dataset = source.load()
        except DataError as error:
            raise of_flag(config, error) from error
        self._data_digest = digest_of(dataset)
        output_dir = agree(config, f"{source.description} {self._data_digest}", output_dir)
        self._folder = RunFolder(output_dir)
        self._checkpoints = Checkpoints(self._folder.checkpoints)
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
        self._say(_headline(config, self._mesh, self._task, source))

        # What they do.
        optimizer = make_optimizer(config, self._steps_per_epoch)
        self._programs = Programs(
            config, self._mesh, self._task, optimizer, channel, self._steps_per_epoch
        )
        # Run once: compiling it well would take longer than running it.
        init = jax.jit(self._task.init, compiler_options={"xla_backend_optimization_level": 0})
        params, model_state = init(named_key(config.seed, "model"))
        block = sum(leaf.size for leaf in jax.tree.leaves(params)) // config.num_workers
        if channel.packets is not None and channel.packets > block:
            flag = (
                f"--packets {channel.packets}"
                if config.trace is None
                else f"--trace {config.trace}"
            )
            raise UsageError(f"{flag}: expected at most {block} packets, a block's elements")

        # Where the run is.
        self._step = 0
        self._window = Window([])
        self._state = self._mesh.replicate(
            rps.init_train_state(
                params, model_state, optimizer, channel, config.num_workers, config.seed
            )
        )

    def begin(self) -> None:
        """Makes the folder of a new run."""
        if self._first_process:
            self._folder.create(self._config)
        check_shared(self._folder.path / CONFIG_FILE)

    def resume(self) -> None:
        """Goes back to the newest checkpoint, or to the start if there is none."""
        saved = self._checkpoints.newest(report=self._say)
        if saved is not None:
            if saved.progress["data_digest"] != self._data_digest:
                raise UsageError(
                    f"--data-path: expected the data that {self._folder.path} began with"
                )
            self._began -= saved.progress["wall_seconds"]
            if saved.progress["num_workers"] == self._config.num_workers:
                self._step = saved.step
                self._state = self._checkpoints.restore(saved.step, self._state)
                self._window = Window(saved.progress["window"])
            else:
                self._resume_resized(saved)
        self._say(f"resuming at step {self._step:,} of {self._total_steps:,}")
        if self._first_process:
            self._folder.rewind(self._step / self._steps_per_epoch)

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
            self._folder.create(self._config)

    def loop(self) -> None:
        """Trains to the end.

        Raises:
            CheckpointError, Diverged, Stopped: As of `train`.
        """
        config = self._config
        first_step, order = self._step, None
        pending: tuple[rps.StepMetrics, jax.Array] | None = None
        with (
            Interrupts(TO_STOP) as interrupts,
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
                    signals.of(interrupts.first),
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
                    self._window.restart_clock()  # The first step was compiled.
                progress.step(self._step)

                if logs:
                    line = self._measure(epoch_ends)
                    if self._first_process:
                        self._folder.append(line)
                    progress.record(line)
                    self._window = Window([])
                last = self._step == self._total_steps
                if signal_number and not last:
                    self._stop(signal_number)
                elif last or (epoch_ends and (epoch + 1) % config.checkpoint_every == 0):
                    self._save()

    def finish(self) -> dict[str, Any] | None:
        """Writes the summary and the picture on process 0, and returns the summary there."""
        if not self._first_process:
            return None
        lines = self._folder.read_metrics()
        if not lines or lines[-1]["step"] != self._total_steps:
            raise UsageError(
                f"{self._folder.metrics}: expected the metrics of step {self._total_steps:,} in it"
            )
        config, task = self._config, self._task
        summary = {
            **lines[-1],
            "score": task.score,
            "algorithm": config.algorithm,
            "drop_rate": config.drop_rate if config.algorithm in LOSSY else None,
            "num_workers": config.num_workers,
            "model_state": config.model_state,
            "data": self._description,
            "wall_seconds": round(time.perf_counter() - self._began, 2),
            "devices": _devices(self._mesh),
            "versions": {
                "python": platform.python_version(),
                "jax": jax.__version__,
                "rps_jax": rps.__version__,
            },
        }
        write_json(self._folder.summary, summary)
        title = f"{task.model_name} on {self._description}: {_setting(config)}"
        draw_curves(lines, task.score, title, self._folder.curves)
        return summary

    def _take(self, pending: tuple[rps.StepMetrics, jax.Array]) -> int:
        """Waits for a step; returns the number of the signal that any process had, or 0."""
        metrics, signal_of_any = pending
        self._window.add(metrics)
        self._check_finite("the training loss", self._window.steps[-1][0])
        return int(signal_of_any)

    def _measure(self, epoch_ends: bool) -> dict[str, Any]:
        """Returns a line of metrics."""
        config = self._config
        line = {
            "step": self._step,
            "epoch": round(self._step / self._steps_per_epoch, EPOCH_DIGITS),
            **self._window.averages(config.num_workers * config.batch_size),
            "consensus_distance": float(self._programs.consensus_distance(self._state)),
        }
        self._check_finite("the consensus distance", line["consensus_distance"])
        if epoch_ends:
            line |= self._programs.evaluate(self._state, self._train_shards, self._test_shards)
            self._check_finite("the mean model's loss", line["mean_model_train_loss"])
            self._check_finite("the mean model's test loss", line["test_loss"])
        return line

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
        self._window.restart_clock()

    def _progress(self) -> dict[str, Any]:
        return {
            "num_workers": self._config.num_workers,
            "steps_per_epoch": self._steps_per_epoch,
            "window": self._window.steps,
            "wall_seconds": time.perf_counter() - self._began,
            "data_digest": self._data_digest,
        }

    def _stop(self, signal_number: int) -> None:
        """Saves a checkpoint, and ends the run; every process does so at the same step."""
        distance = float(self._programs.consensus_distance(self._state))
        self._check_finite("the consensus distance", distance)
        self._save()
        raise Stopped(
            signal_number,
            f"at step {self._step:,} of {self._total_steps:,}, with a checkpoint",
            f"python -m launch.train --resume --output-dir {shlex.quote(str(self._folder.path))}",
            said=self._first_process,
        )

    def _say(self, text: str) -> None:
        if self._first_process:
            print(text, flush=True)


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


def _headline(config: TrainConfig, mesh: rps.WorkerMesh, task: Task, source: Source) -> str:
    return (
        f"{task.model_name} on {source.description}, {source.num_train:,} training examples\n"
        f"{_setting(config)}, on {_devices(mesh)}"
    )


def _devices(mesh: rps.WorkerMesh) -> str:
    devices = f"{mesh.mesh.size} x {mesh.mesh.devices.flat[0].device_kind}"
    processes = jax.process_count()
    return devices if processes == 1 else f"{devices} in {processes} processes"


def _setting(config: TrainConfig) -> str:
    workers = "1 worker" if config.num_workers == 1 else f"{config.num_workers} workers"
    if config.algorithm not in LOSSY:
        return f"{workers}, {config.algorithm}"
    if config.trace is not None:
        return f"{workers}, {config.algorithm}, losses as in {config.trace.name}"
    assert config.drop_rate is not None  # as the command line was checked for
    lost = f"{100 * config.drop_rate:.3g}%"
    if config.all_gather_drop_rate is not None:
        lost += f" and {100 * config.all_gather_drop_rate:.3g}%"
    return f"{workers}, {config.algorithm}, {lost} of messages lost"
