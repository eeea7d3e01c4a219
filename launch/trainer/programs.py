"""The compiled programs of a run, each over all workers."""

import functools
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import PartitionSpec as P

import rps_jax as rps
from data import epoch_order, take
from launch.config import TrainConfig, make_rule
from launch.tasks import Task
from launch.trainer.shards import Shards
from rps_jax import WorkerMesh


class Programs:
    """What a run does over and over, compiled at first use.

    Several runs that differ in their channel only are one program: each worker has the models of
    all, with an axis of runs that is mapped by `jax.vmap`. A run alone has no such axis.

    Attributes:
        start_epoch: `(arrays, epoch) -> order`, the order of each worker's examples.
        train_step: `(state, arrays, order, signals) -> (state, metrics, signal)`; takes the buffers
            of the state. Of each worker's `signals`, all get to know the greatest.
        consensus_distance: `state -> scalar`, or one for each run.
    """

    def __init__(
        self,
        config: TrainConfig,
        mesh: WorkerMesh,
        task: Task,
        optimizer: optax.GradientTransformation,
        channels: Sequence[rps.Channel],
        steps_per_epoch: int,
    ) -> None:
        """Describes the programs; nothing is compiled yet.

        Args:
            config: What to run.
            mesh: Where the workers are.
            task: Data and model.
            optimizer: Of the local step.
            channels: Where loss comes from, in each run.
            steps_per_epoch: Batches that every worker takes of its examples.
        """
        axis = mesh.axis_name
        self._num_runs = len(channels)
        data_key = named_key(config.seed, "data")

        def start_epoch(arrays: Any, epoch: jax.Array) -> jax.Array:
            worker_key = jax.random.fold_in(data_key, jax.lax.axis_index(axis))
            return epoch_order(jax.random.fold_in(worker_key, epoch), arrays["weight"])

        def train_step(
            channel: rps.Channel,
            state: rps.TrainState,
            arrays: Any,
            order: jax.Array,
            signal: jax.Array,
        ) -> Any:
            step_of_worker = rps.make_train_step(
                task.loss_fn,
                optimizer,
                channel,
                axis,
                algorithm=make_rule(config),
                assignment=config.assignment,
                model_state_policy=config.model_state,
            )
            start = state.step % steps_per_epoch * config.batch_size
            state, metrics = step_of_worker(state, take(arrays, order, start, config.batch_size))
            return state, metrics, jax.lax.pmax(signal, axis)

        def consensus_distance(state: rps.TrainState) -> jax.Array:
            return rps.consensus_distance(state.params, axis)

        def mean_model(state: rps.TrainState) -> Any:
            return rps.mean_model((state.params, state.model_state), axis)

        def evaluate(model: Any, batch: Any) -> Any:
            params, model_state = model
            result = task.evaluate(params, model_state, batch)
            sums = jnp.stack([result.loss, result.correct, result.weight])
            return jax.lax.psum(sums, axis), result.predictions

        self.start_epoch = mesh.spmd(start_epoch, (P("workers"), P()), P("workers"))
        # The channels are an argument: a trace is too large for a constant of the program.
        channel = channels[0] if len(channels) == 1 else jax.tree.map(_stack, *channels)
        self.train_step = functools.partial(
            _begun_together(
                mesh.spmd(
                    self._of_runs(train_step, (0, 0, None, None, None), (0, 0, None)),
                    (P(), *(P("workers"),) * 4),
                    (P("workers"), P(), P()),
                    donate_argnums=(1,),
                )
            ),
            jax.tree.map(functools.partial(_shared, mesh), channel),
        )
        self.consensus_distance = mesh.spmd(
            self._of_runs(consensus_distance, (0,)), (P("workers"),), P()
        )
        self._mean_model = mesh.spmd(self._of_runs(mean_model, (0,)), (P("workers"),), P())
        self._evaluate = mesh.spmd(
            self._of_runs(evaluate, (0, None)), (P(), P("workers")), (P(), P("workers"))
        )
        self._test_metrics = task.test_metrics

    def of_all_runs(self, state: Any) -> Any:
        """Returns the state of one worker in which all runs start, from that of one."""
        if self._num_runs == 1:
            return state
        return jax.tree.map(lambda leaf: jnp.stack([leaf] * self._num_runs), state)

    def _of_runs(
        self, function: Callable[..., Any], in_axes: tuple[int | None, ...], out_axes: Any = 0
    ) -> Callable[..., Any]:
        """Returns a function of one run as one of all."""
        if self._num_runs == 1:
            return function
        return jax.vmap(function, in_axes=in_axes, out_axes=out_axes)

    def evaluate(
        self, state: rps.TrainState, train: Shards, test: Shards
    ) -> list[dict[str, float]]:
        """Evaluates the mean model of each run on all training and all test examples.

        Args:
            state: Of all workers.
            train: All training examples.
            test: All test examples, dealt in their order.

        Returns:
            The entries of the metrics that an epoch ends with, of each run.
        """
        model = self._mean_model(state)
        train_sums, _ = self._evaluate_split(model, train)
        test_sums, predictions = self._evaluate_split(model, test)
        metrics = [
            {
                "mean_model_train_loss": float(train_loss / train_weight),
                "test_loss": float(loss / weight),
                "test_accuracy": float(correct / weight),
            }
            for (train_loss, _, train_weight), (loss, correct, weight) in zip(
                train_sums, test_sums, strict=True
            )
        ]
        if self._test_metrics is not None:
            for found, said in zip(metrics, self._in_order(predictions, test.sizes), strict=True):
                found |= self._test_metrics(said)
        return metrics

    def _evaluate_split(self, model: Any, shards: Shards) -> tuple[np.ndarray, list[jax.Array]]:
        """Returns the sums over a split, `[num_runs, 3]`, and the predictions of each batch."""
        results = []
        for start in range(0, shards.arrays["weight"].shape[1], shards.batch):
            rows = {k: a[:, start : start + shards.batch] for k, a in shards.arrays.items()}
            results.append(self._evaluate(model, rows))
        sums = np.sum([np.asarray(of_batch) for of_batch, _ in results], axis=0)
        return sums.reshape(self._num_runs, 3), [said for _, said in results]

    def _in_order(self, batches: list[jax.Array], sizes: list[int]) -> list[np.ndarray]:
        """Returns the predictions of each run, on all hosts, in the order of the parts."""
        everywhere = [multihost_utils.process_allgather(said, tiled=True) for said in batches]
        if self._num_runs == 1:
            everywhere = [said[:, None] for said in everywhere]
        of_workers = np.concatenate(everywhere, axis=2)
        return [
            np.concatenate([said[:size] for said, size in zip(of_run, sizes, strict=True)])
            for of_run in of_workers.swapaxes(0, 1)
        ]


def _shared(mesh: WorkerMesh, value: Any) -> jax.Array:
    """Puts a value that every process has on all devices."""
    array = np.asarray(jnp.asarray(value))
    return jax.make_array_from_callback(array.shape, mesh.sharding(P()), array.__getitem__)


def _begun_together(program: Any) -> Callable[..., Any]:
    """Returns a program that all processes have compiled before the first of them runs it.

    JAX's CPU collectives (Gloo) give up on processes that come 30 seconds late to a reduce-scatter.
    """
    compiled = None

    def run(*arguments: Any) -> Any:
        nonlocal compiled
        if compiled is None:
            compiled = program.lower(*arguments).compile()
            multihost_utils.sync_global_devices("compiled")
        return compiled(*arguments)

    return run


def _stack(*leaves: Any) -> np.ndarray:
    return np.stack([np.asarray(jnp.asarray(leaf)) for leaf in leaves])


def make_optimizer(config: TrainConfig, steps_per_epoch: int) -> optax.GradientTransformation:
    """Returns the optimizer of the local step."""
    total = config.epochs * steps_per_epoch
    schedules = {
        "constant": optax.constant_schedule(config.learning_rate),
        "cosine": optax.cosine_decay_schedule(config.learning_rate, total),
        "step": optax.piecewise_constant_schedule(
            config.learning_rate, {total // 2: 0.1, total * 3 // 4: 0.1}
        ),
    }
    rate = schedules[config.schedule]
    chain = [] if config.clip_norm is None else [optax.clip_by_global_norm(config.clip_norm)]
    if config.weight_decay:
        chain.append(optax.add_decayed_weights(config.weight_decay))
    if config.optimizer == "adam":
        chain.append(optax.adam(rate))
    else:
        chain.append(optax.sgd(rate, momentum=config.momentum or None))
    return optax.chain(*chain)


def named_key(seed: int, purpose: str) -> jax.Array:
    """Returns a key of its own for each thing that is random beside the training steps."""
    key = jax.random.key(seed, impl="threefry2x32")
    return jax.random.fold_in(key, zlib.crc32(purpose.encode()))
