"""The training run: from a checked configuration to a folder of results, in named phases."""

import math
import platform
import shlex
import signal
import time
import zlib
from typing import Any

import jax
import numpy as np

import rps_jax as rps
from data import DataError, Source, partition
from launch.channels import make_channel
from launch.checkpoints import Checkpoints
from launch.command_line import CommandError, UsageError
from launch.config import LOSSY, TrainConfig
from launch.curves import draw_curves
from launch.interrupts import Interrupts
from launch.programs import Programs, make_optimizer, named_key
from launch.progress import Progress
from launch.run_folder import RunFolder, write_json
from launch.shards import deal
from launch.source import of_flag
from launch.tasks import Task, make_task


class Diverged(CommandError):
    """The training has left the finite numbers; the message says when, and what is kept."""

    exit_status = 3


class Stopped(CommandError):
    """A signal asked the run to stop, and it has saved a checkpoint."""

    def __init__(self, message: str, signal_number: int) -> None:
        """Takes the exit status that shells expect after a signal."""
        super().__init__(message)
        self.exit_status = 128 + signal_number

    def report(self) -> str:
        """Returns the message as it is: this is no error, and its last line is a command."""
        return str(self)


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


def train(config: TrainConfig, source: Source, folder: RunFolder) -> dict[str, Any]:
    """Runs a training from its start, or from the newest checkpoint, to its end.

    Args:
        config: A checked configuration.
        source: The data, found and checked.
        folder: Where the results go; new, or the run to resume.

    Returns:
        The summary that is written to `summary.json`.

    Raises:
        UsageError: The devices cannot hold the workers, the data are damaged, or not those of the
            run to resume.
        CheckpointError: A checkpoint cannot be written, or cannot be used.
        Diverged: The loss or a model is not finite.
        Stopped: SIGTERM or Ctrl-C; a checkpoint was saved.
    """
    began = time.perf_counter()

    # Where the workers are, what they lose, and what they learn from.
    try:
        mesh = rps.worker_mesh(config.num_workers, config.workers_per_device)
    except ValueError as error:
        raise UsageError(f"the devices cannot hold the workers: {error}") from None
    channel = make_channel(config)
    try:
        task = make_task(config, source.load())
    except DataError as error:
        raise of_flag(config, error) from error
    labels = task.dataset.train[task.dataset.label_key]
    parts = partition(labels, config.num_workers, label_skew=config.label_skew, seed=config.seed)
    train_shards = deal(mesh, task.dataset.train, parts)
    num_test = len(task.dataset.test[task.dataset.label_key])
    test_parts = np.array_split(np.arange(num_test), config.num_workers)
    test_shards = deal(mesh, task.dataset.test, test_parts)
    steps_per_epoch = min(train_shards.sizes) // config.batch_size
    total_steps = steps_per_epoch * config.epochs

    print(_headline(config, mesh, task, sum(train_shards.sizes)), flush=True)

    # What they do.
    optimizer = make_optimizer(config, steps_per_epoch)
    programs = Programs(config, mesh, task, optimizer, channel, steps_per_epoch)
    # Run once: compiling it well would take longer than running it.
    init = jax.jit(task.init, compiler_options={"xla_backend_optimization_level": 0})
    params, model_state = init(named_key(config.seed, "model"))
    block = sum(leaf.size for leaf in jax.tree.leaves(params)) // config.num_workers
    if channel.packets is not None and channel.packets > block:
        flag = f"--packets {channel.packets}" if config.trace is None else f"--trace {config.trace}"
        raise UsageError(f"{flag}: expected at most {block} packets, a block's elements")
    state = mesh.replicate(
        rps.init_train_state(
            params, model_state, optimizer, channel, config.num_workers, config.seed
        )
    )

    # Where the run is.
    def check_data(progress: dict[str, Any]) -> None:
        if progress["data_checksum"] != data_checksum:
            raise UsageError(f"--data-path: expected the data that {folder.path} began with")

    checkpoints = Checkpoints(folder.checkpoints)
    step, window = 0, Window([])
    data_checksum = _checksum(task.dataset.train)
    if not config.resume:
        folder.create(config)
    else:
        restored = checkpoints.restore_newest(
            state, report=lambda text: print(text, flush=True), check=check_data
        )
        if restored is not None:
            step, state = restored.step, restored.state
            window = Window(restored.progress["window"])
            began -= restored.progress["wall_seconds"]
        print(f"resuming at step {step:,} of {total_steps:,}", flush=True)
        folder.rewind(step)

    def save() -> None:
        progress_values = {
            "window": window.steps,
            "wall_seconds": time.perf_counter() - began,
            "data_checksum": data_checksum,
        }
        checkpoints.save(step, state, progress_values)
        window.restart_clock()

    def check_finite(what: str, value: float) -> None:
        if not math.isfinite(value):
            good = checkpoints.steps()
            kept = f"the checkpoint of step {good[-1]:,} is kept" if good else "no checkpoint yet"
            raise Diverged(
                f"{what} is {value} at step {step:,} of {total_steps:,}; {kept}; a smaller "
                "--learning-rate or a --clip-norm may help"
            )

    first_step, order = step, None
    pending: rps.StepMetrics | None = None
    with Interrupts() as interrupts, Progress(config.epochs, steps_per_epoch, step) as progress:
        while step < total_steps:
            epoch, step_of_epoch = divmod(step, steps_per_epoch)
            if order is None or step_of_epoch == 0:
                order = programs.start_epoch(train_shards.arrays, epoch)
            previous = pending
            state, pending = programs.train_step(state, train_shards.arrays, order)
            step, step_of_epoch = step + 1, step_of_epoch + 1

            # The metrics of a step are waited for while the next one runs, unless they are due.
            epoch_ends = step_of_epoch == steps_per_epoch
            logs = epoch_ends or step_of_epoch % config.log_every == 0
            signal_number = interrupts.received  # Read once: it may come at any time.
            due = logs or signal_number
            for metrics in (previous, pending if due else None):
                if metrics is not None:
                    window.add(metrics)
                    check_finite("the training loss", window.steps[-1][0])
            if due:
                pending = None
            if step == first_step + 2 and not due:
                window.restart_clock()  # The first step was compiled.
            progress.step(step)

            if logs:
                line = {
                    "step": step,
                    "epoch": round(step / steps_per_epoch, 4),
                    **window.averages(config.num_workers * config.batch_size),
                    "consensus_distance": float(programs.consensus_distance(state)),
                }
                check_finite("the consensus distance", line["consensus_distance"])
                if epoch_ends:
                    line |= programs.evaluate(state, train_shards, test_shards)
                    check_finite("the mean model's loss", line["mean_model_train_loss"])
                    check_finite("the mean model's test loss", line["test_loss"])
                folder.append(line)
                progress.record(line)
                window = Window([])
            if epoch_ends and ((epoch + 1) % config.checkpoint_every == 0 or step == total_steps):
                save()
            elif signal_number:
                check_finite("the consensus distance", float(programs.consensus_distance(state)))
                save()
                raise Stopped(
                    f"stopped by {signal.Signals(signal_number).name} at step {step:,} of "
                    f"{total_steps:,}, with a checkpoint; go on with\n"
                    "python -m launch.train --resume "
                    f"--output-dir {shlex.quote(str(folder.path))}",
                    signal_number,
                )

    lines = folder.read_metrics()
    if not lines or lines[-1]["step"] != total_steps:
        raise UsageError(f"{folder.metrics}: expected the metrics of step {total_steps:,} in it")
    summary = {
        **lines[-1],
        "score": task.score,
        "algorithm": config.algorithm,
        "drop_rate": config.drop_rate if config.algorithm in LOSSY else None,
        "num_workers": config.num_workers,
        "model_state": config.model_state,
        "data": task.dataset.description,
        "wall_seconds": round(time.perf_counter() - began, 2),
        "devices": f"{mesh.mesh.size} x {mesh.mesh.devices.flat[0].device_kind}",
        "versions": {
            "python": platform.python_version(),
            "jax": jax.__version__,
            "rps_jax": rps.__version__,
        },
    }
    write_json(folder.summary, summary)
    title = f"{task.model_name} on {task.dataset.description}: {_setting(config)}"
    draw_curves(lines, task.score, title, folder.curves)
    return summary


def _checksum(arrays: dict[str, np.ndarray]) -> int:
    checksum = 0
    for key in sorted(arrays):
        checksum = zlib.crc32(np.ascontiguousarray(arrays[key]).data, checksum)
    return checksum


def _headline(config: TrainConfig, mesh: rps.WorkerMesh, task: Task, num_train: int) -> str:
    devices = f"{mesh.mesh.size} x {mesh.mesh.devices.flat[0].device_kind}"
    return (
        f"{task.model_name} on {task.dataset.description}, {num_train:,} training examples\n"
        f"{_setting(config)}, on {devices}"
    )


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
