"""The training run: from a checked configuration to a folder of results, in named phases."""

import math
import platform
import signal
import time
import zlib
from collections.abc import Callable
from types import FrameType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import rps_jax as rps
from data import Source, epoch_order, partition, stack_shards, take
from launch.checkpoints import Checkpoints
from launch.config import TrainConfig, UsageError
from launch.curves import draw_curves
from launch.progress import Progress
from launch.run_folder import RunFolder, write_json
from launch.tasks import Evaluation, Task, make_task
from rps_jax import PER_WORKER, SHARED, WorkerMesh

_EVALUATION_BATCH = 256
"""Most examples that a worker evaluates at once."""


class Diverged(Exception):
    """The training has left the finite numbers; the message says when and what is kept."""


class Stopped(Exception):
    """A signal asked the run to stop, and it has saved a checkpoint.

    Attributes:
        signal_number: Which signal.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number


class Programs(NamedTuple):
    """The compiled programs of a run, each over all workers.

    Attributes:
        start_epoch: `(shards, epoch) -> order` of each worker's examples.
        train_step: `(state, shards, order) -> (state, metrics)`.
        consensus_distance: `state -> scalar`.
        mean_model: `state -> (params, model_state)`.
        evaluate: `(params, model_state, shards, start) -> (sums, predictions)`.
    """

    start_epoch: Callable[..., Any]
    train_step: Callable[..., Any]
    consensus_distance: Callable[..., Any]
    mean_model: Callable[..., Any]
    evaluate: Callable[..., Any]


class Shards(NamedTuple):
    """A split of the data, dealt to the workers.

    Attributes:
        arrays: On the devices, `[num_workers, capacity, ...]`, with "weight".
        batch: Rows of an evaluation batch; divides the capacity.
        sizes: How many examples each worker has.
    """

    arrays: dict[str, jax.Array]
    batch: int
    sizes: list[int]


class Window:
    """What happened in the steps since the last line of metrics."""

    def __init__(self, steps: list[list[float]]) -> None:
        """Goes on from steps of an earlier part of the run: `[loss, delivered]` of each."""
        self.steps = steps
        self.restart_clock()

    def restart_clock(self) -> None:
        """Leaves out of the throughput whatever happened before now."""
        self._began, self._timed_from = time.perf_counter(), len(self.steps)

    def add(self, metrics: rps.StepMetrics) -> None:
        """Waits for the metrics of a step, and adds them."""
        loss, delivered = jax.device_get((metrics.loss, metrics.delivered))
        self.steps.append([float(loss), float(np.mean(delivered))])

    def averages(self, examples_per_step: int) -> dict[str, float]:
        """Returns the means over the steps, and the throughput."""
        seconds = time.perf_counter() - self._began
        loss, delivered = np.mean(self.steps, axis=0)
        timed = len(self.steps) - self._timed_from
        return {
            "train_loss": float(loss),
            "delivered_fraction": float(delivered),
            "examples_per_second": round(timed * examples_per_step / seconds, 1),
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
        UsageError: The devices cannot hold the workers, or the data are damaged.
        Diverged: The loss or a model is not finite.
        Stopped: SIGTERM or Ctrl-C; a checkpoint was saved.
    """
    began = time.perf_counter()
    mesh = _lay_out(config)
    task = make_task(config, source.load())
    shards, test_shards = _deal(config, mesh, task)
    steps_per_epoch = min(shards.sizes) // config.batch_size
    total_steps = steps_per_epoch * config.epochs

    channel = rps.Bernoulli(config.drop_rate, config.all_gather_drop_rate, config.packets)
    optimizer = _make_optimizer(config, steps_per_epoch)
    params, model_state = jax.jit(task.init)(_key(config.seed, "model"))
    programs = _compile(
        config, mesh, task, optimizer, channel, steps_per_epoch, shards, test_shards
    )
    one_worker = rps.init_train_state(
        params, model_state, optimizer, channel, config.num_workers, config.seed
    )
    state = mesh.replicate(one_worker)

    if not config.resume:
        folder.create(config)
    checkpoints = Checkpoints(folder.checkpoints)
    step, window = 0, Window([])
    print(_headline(config, mesh, task, params, sum(shards.sizes)), flush=True)
    if config.resume:
        restored = checkpoints.restore_newest(state, report=lambda text: print(text, flush=True))
        if restored is None:
            print("there is no checkpoint to resume from: starting from step 0", flush=True)
        else:
            step, state = restored.step, restored.state
            window = Window(restored.progress["window"])
            print(f"resuming at step {step} of {total_steps}", flush=True)
        folder.rewind(step)

    def save() -> None:
        checkpoints.save(step, state, {"window": window.steps, "seed": config.seed})

    def diverged(what: str) -> Diverged:
        good = checkpoints.steps()
        kept = f"the checkpoint of step {good[-1]}" if good else "no checkpoint was saved before it"
        return Diverged(
            f"{what} is not finite at step {step}: a smaller --learning-rate or a --clip-norm may "
            f"help; {kept} is kept"
            if good
            else f"{what} is not finite at step {step}; {kept}"
        )

    order, pending = None, None
    with (
        _Signals() as signals,
        Progress(total_steps, steps_per_epoch, step, task.score) as progress,
    ):
        while step < total_steps:
            if order is None or step % steps_per_epoch == 0:
                order = programs.start_epoch(shards.arrays, step // steps_per_epoch)
            state, metrics = programs.train_step(state, shards.arrays, order)
            step += 1
            # The metrics of a step are waited for while the next one runs.
            pending, previous = metrics, pending
            if previous is not None:
                window.add(previous)
            epoch_ends = step % steps_per_epoch == 0
            records = epoch_ends or step % config.log_every == 0
            if records or signals.received:
                window.add(pending)
                pending = None
            if window.steps and not math.isfinite(window.steps[-1][0]):
                raise diverged("the training loss")
            progress.step(step)

            if records:
                line = {"step": step, "epoch": round(step / steps_per_epoch, 4)}
                line |= window.averages(config.num_workers * config.batch_size)
                line["consensus_distance"] = float(programs.consensus_distance(state))
                if not math.isfinite(line["consensus_distance"]):
                    raise diverged("a worker's model")
                if epoch_ends:
                    line |= _evaluate(programs, task, state, shards, test_shards)
                folder.append(line)
                progress.record(line)
                window = Window([])
            epochs_done = step // steps_per_epoch
            if step == total_steps or (epoch_ends and epochs_done % config.checkpoint_every == 0):
                save()
                window.restart_clock()
            elif signals.received:
                save()
                name = signal.Signals(signals.received).name
                raise Stopped(
                    f"stopped by {name} at step {step} of {total_steps}, with a checkpoint; "
                    f"go on with: --resume --output-dir {folder.path}",
                    signals.received,
                )

    lines = folder.read_metrics()
    summary = _summary(config, task, lines[-1], mesh, time.perf_counter() - began)
    write_json(folder.summary, summary)
    draw_curves(lines, task.score, _title(config, task), folder.curves)
    return summary


def _lay_out(config: TrainConfig) -> WorkerMesh:
    try:
        return rps.worker_mesh(config.num_workers, config.workers_per_device)
    except ValueError as error:
        raise UsageError(f"--{error}".replace("_", "-", 2)) from None


def _deal(config: TrainConfig, mesh: WorkerMesh, task: Task) -> tuple[Shards, Shards]:
    """Deals the training and the test examples to the workers; each process stacks its own."""
    labels = task.dataset.train[task.dataset.label_key]
    parts = partition(labels, config.num_workers, label_skew=config.label_skew, seed=config.seed)
    num_test = len(next(iter(task.dataset.test.values())))
    test_parts = np.array_split(np.arange(num_test), config.num_workers)

    def shards(arrays: dict[str, np.ndarray], parts: list[np.ndarray]) -> Shards:
        sizes = [len(part) for part in parts]
        batches = -(-max(sizes) // _EVALUATION_BATCH)
        batch = -(-max(sizes) // batches)
        mine = [parts[worker] for worker in mesh.local_workers]
        return Shards(mesh.put(stack_shards(arrays, mine, batches * batch)), batch, sizes)

    return shards(task.dataset.train, parts), shards(task.dataset.test, test_parts)


def _make_optimizer(config: TrainConfig, steps_per_epoch: int) -> optax.GradientTransformation:
    total = config.epochs * steps_per_epoch
    schedules = {
        "constant": optax.constant_schedule(config.learning_rate),
        "cosine": optax.cosine_decay_schedule(config.learning_rate, total),
        "step": optax.piecewise_constant_schedule(
            config.learning_rate, {total // 2: 0.1, total * 3 // 4: 0.1}
        ),
    }
    rate = schedules[config.schedule]
    steps = [] if config.clip_norm is None else [optax.clip_by_global_norm(config.clip_norm)]
    if config.weight_decay:
        steps.append(optax.add_decayed_weights(config.weight_decay))
    steps.append(
        optax.adam(rate)
        if config.optimizer == "adam"
        else optax.sgd(rate, momentum=config.momentum or None)
    )
    return optax.chain(*steps)


def _compile(
    config: TrainConfig,
    mesh: WorkerMesh,
    task: Task,
    optimizer: optax.GradientTransformation,
    channel: rps.Channel,
    steps_per_epoch: int,
    shards: Shards,
    test_shards: Shards,
) -> Programs:
    axis = mesh.axis_name
    data_key = _key(config.seed, "data")
    step_of_worker = rps.make_train_step(
        task.loss_fn,
        optimizer,
        channel,
        axis,
        algorithm=config.algorithm,
        on_miss=config.on_miss,
        assignment=config.assignment,
        model_state_policy=config.model_state,
    )

    def start_epoch(shard: Any, epoch: jax.Array) -> jax.Array:
        worker_key = jax.random.fold_in(data_key, jax.lax.axis_index(axis))
        return epoch_order(jax.random.fold_in(worker_key, epoch), shard["weight"])

    def train_step(state: rps.TrainState, shard: Any, order: jax.Array) -> Any:
        start = state.step % steps_per_epoch * config.batch_size
        return step_of_worker(state, take(shard, order, start, config.batch_size))

    def consensus_distance(state: rps.TrainState) -> jax.Array:
        return rps.consensus_distance(state.params, axis)

    def mean_model(state: rps.TrainState) -> Any:
        return rps.mean_model((state.params, state.model_state), axis)

    def evaluate(batch_size: int) -> Callable[..., Any]:
        def evaluate(params: Any, model_state: Any, shard: Any, start: jax.Array) -> Any:
            rows = {
                key: jax.lax.dynamic_slice_in_dim(array, start, batch_size)
                for key, array in shard.items()
            }
            result: Evaluation = task.evaluate(params, model_state, rows)
            sums = (result.loss, result.correct, result.weight)
            return jax.lax.psum(jnp.stack(sums), axis), result.predictions

        in_specs = (SHARED, SHARED, PER_WORKER, SHARED)
        return mesh.spmd(evaluate, in_specs, (SHARED, PER_WORKER))

    evaluations = {size: evaluate(size) for size in {shards.batch, test_shards.batch}}
    return Programs(
        start_epoch=mesh.spmd(start_epoch, (PER_WORKER, SHARED), PER_WORKER),
        train_step=mesh.spmd(
            train_step, (PER_WORKER,) * 3, (PER_WORKER, SHARED), donate_argnums=(0,)
        ),
        consensus_distance=mesh.spmd(consensus_distance, (PER_WORKER,), SHARED),
        mean_model=mesh.spmd(mean_model, (PER_WORKER,), (SHARED, SHARED)),
        evaluate=lambda model, shards, start: evaluations[shards.batch](
            *model, shards.arrays, start
        ),
    )


def _evaluate(
    programs: Programs, task: Task, state: rps.TrainState, shards: Shards, test_shards: Shards
) -> dict[str, float]:
    """Evaluates the mean model on the whole training and test sets."""
    model = programs.mean_model(state)

    def run(shards: Shards) -> tuple[float, float, np.ndarray]:
        starts = range(0, shards.arrays["weight"].shape[1], shards.batch)
        results = [programs.evaluate(model, shards, start) for start in starts]
        loss, correct, weight = np.sum([np.asarray(sums) for sums, _ in results], axis=0)
        by_worker = np.concatenate([np.asarray(said) for _, said in results], axis=1)
        predictions = [said[:size] for said, size in zip(by_worker, shards.sizes, strict=True)]
        return loss / weight, correct / weight, np.concatenate(predictions)

    train_loss, _, _ = run(shards)
    test_loss, test_accuracy, predictions = run(test_shards)
    return {
        "mean_model_train_loss": float(train_loss),
        "test_loss": float(test_loss),
        "test_accuracy": float(test_accuracy),
        **task.test_metrics(predictions),
    }


def _key(seed: int, purpose: str) -> jax.Array:
    """Returns a key of its own for each thing that is random beside the training steps."""
    key = jax.random.key(seed, impl="threefry2x32")
    return jax.random.fold_in(key, zlib.crc32(purpose.encode()))


class _Signals:
    """Remembers SIGTERM and Ctrl-C while the loop runs; a second one ends the program at once."""

    def __init__(self) -> None:
        self.received = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "_Signals":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.received = number
        for again in self._before:
            signal.signal(again, signal.SIG_DFL)


def _headline(
    config: TrainConfig, mesh: WorkerMesh, task: Task, params: Any, num_train: int
) -> str:
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    device = mesh.mesh.devices.flat[0]
    return (
        f"{task.dataset.description}: {num_train:,} training examples; {task.model_name}, "
        f"{size:,} parameters\n"
        f"{config.num_workers} workers on {mesh.mesh.size} {device.platform} devices; "
        f"{config.algorithm}, drop rate {config.drop_rate:g}"
    )


def _title(config: TrainConfig, task: Task) -> str:
    return (
        f"{task.model_name} on {task.dataset.description}, {config.num_workers} workers, "
        f"{config.algorithm}, {config.drop_rate:.0%} of messages lost"
    )


def _summary(
    config: TrainConfig, task: Task, last: dict[str, Any], mesh: WorkerMesh, seconds: float
) -> dict[str, Any]:
    return {
        **last,
        "algorithm": config.algorithm,
        "drop_rate": config.drop_rate,
        "num_workers": config.num_workers,
        "model_state": config.model_state,
        "data": task.dataset.description,
        "wall_seconds": round(seconds, 2),
        "devices": f"{mesh.mesh.size} x {mesh.mesh.devices.flat[0].device_kind}",
        "versions": {
            "python": platform.python_version(),
            "jax": jax.__version__,
            "rps_jax": rps.__version__,
        },
    }
