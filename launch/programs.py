"""The compiled programs of a run, each over all workers."""

import functools
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils

import rps_jax as rps
from data import epoch_order, take
from launch.config import TrainConfig
from launch.shards import Shards
from launch.tasks import Task
from rps_jax import PER_WORKER, SHARED, WorkerMesh


class Programs:
    """What a run does over and over, compiled at first use.

    Attributes:
        start_epoch: `(arrays, epoch) -> order`, the order of each worker's examples.
        train_step: `(state, arrays, order, signals) -> (state, metrics, signal)`; takes the buffers
            of the state. Of each worker's `signals`, all get to know the greatest.
        consensus_distance: `state -> scalar`.
    """

    def __init__(
        self,
        config: TrainConfig,
        mesh: WorkerMesh,
        task: Task,
        optimizer: optax.GradientTransformation,
        channel: rps.Channel,
        steps_per_epoch: int,
    ) -> None:
        """Describes the programs; nothing is compiled yet.

        Args:
            config: What to run.
            mesh: Where the workers are.
            task: Data and model.
            optimizer: Of the local step.
            channel: Where loss comes from.
            steps_per_epoch: Batches that every worker takes of its examples.
        """
        axis = mesh.axis_name
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
                algorithm=config.algorithm,
                on_miss=config.on_miss,
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

        self.start_epoch = mesh.spmd(start_epoch, (PER_WORKER, SHARED), PER_WORKER)
        # The channel is an argument: a trace is too large for a constant of the program.
        self.train_step = functools.partial(
            _begun_together(
                mesh.spmd(
                    train_step,
                    (SHARED, *(PER_WORKER,) * 4),
                    (PER_WORKER, SHARED, SHARED),
                    donate_argnums=(1,),
                )
            ),
            jax.tree.map(functools.partial(_shared, mesh), channel),
        )
        self.consensus_distance = mesh.spmd(consensus_distance, (PER_WORKER,), SHARED)
        self._mean_model = mesh.spmd(mean_model, (PER_WORKER,), SHARED)
        self._evaluate = mesh.spmd(evaluate, (SHARED, PER_WORKER), (SHARED, PER_WORKER))
        self._test_metrics = task.test_metrics

    def evaluate(self, state: rps.TrainState, train: Shards, test: Shards) -> dict[str, float]:
        """Evaluates the mean model on all training and all test examples.

        Args:
            state: Of all workers.
            train: All training examples.
            test: All test examples, dealt in their order.

        Returns:
            The entries of the metrics that an epoch ends with.
        """
        model = self._mean_model(state)
        train_loss, _, _ = self._evaluate_split(model, train)
        test_loss, test_accuracy, predictions = self._evaluate_split(model, test)
        metrics = {
            "mean_model_train_loss": train_loss,
            "test_loss": test_loss,
            "test_accuracy": test_accuracy,
        }
        if self._test_metrics is not None:
            metrics |= self._test_metrics(_in_order(predictions, test.sizes))
        return metrics

    def _evaluate_split(self, model: Any, shards: Shards) -> tuple[float, float, list[jax.Array]]:
        """Returns loss, accuracy, and the predictions for each batch of rows."""
        results = []
        for start in range(0, shards.arrays["weight"].shape[1], shards.batch):
            rows = {k: a[:, start : start + shards.batch] for k, a in shards.arrays.items()}
            results.append(self._evaluate(model, rows))
        loss, correct, weight = np.sum([np.asarray(sums) for sums, _ in results], axis=0)
        return float(loss / weight), float(correct / weight), [said for _, said in results]


def _shared(mesh: WorkerMesh, value: Any) -> jax.Array:
    """Puts a value that every process has on all devices."""
    array = np.asarray(jnp.asarray(value))
    return jax.make_array_from_callback(array.shape, mesh.sharding(SHARED), array.__getitem__)


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


def _in_order(batches: list[jax.Array], sizes: list[int]) -> np.ndarray:
    """Returns the predictions of all workers, on all hosts, in the order of the parts."""
    everywhere = [multihost_utils.process_allgather(said, tiled=True) for said in batches]
    by_worker = np.concatenate(everywhere, axis=1)
    return np.concatenate([said[:size] for said, size in zip(by_worker, sizes, strict=True)])


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
