"""Measures the workers' models: the scores of their mean, and how far apart they are."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import PartitionSpec as P

import rps_jax as rps
from launch.tasks import Task
from launch.trainer.shards import Shards


class Evaluator:
    """The programs that measure models; compiled at first use."""

    def __init__(self, mesh: rps.WorkerMesh, task: Task) -> None:
        """Describes the programs.

        Args:
            mesh: Where the workers are.
            task: Data and model.
        """
        axis = mesh.axis_name

        def distance(state: rps.TrainState) -> jax.Array:
            return rps.distance_from_mean(state.params, axis)

        def update_products(state: rps.TrainState) -> rps.UpdateProducts:
            *_, sketches = state.opt_state
            return rps.update_products(sketches, axis)

        def model_of(state: rps.TrainState, worker: jax.Array) -> Any:
            mine = jax.lax.axis_index(axis) == worker
            model = state.params, state.model_state
            return jax.lax.psum(jax.tree.map(lambda x: jnp.where(mine, x, 0), model), axis)

        def mean_model(state: rps.TrainState) -> Any:
            return rps.mean_model((state.params, state.model_state), axis)

        def evaluate(model: Any, batch: Any) -> Any:
            params, model_state = model
            result = task.evaluate(params, model_state, batch)
            sums = jnp.stack([result.loss, result.correct, result.weight])
            return jax.lax.psum(sums, axis), result.predictions

        self._distance = mesh.spmd(distance, (P("workers"),), P("workers"))
        self._update_products = mesh.spmd(update_products, (P("workers"),), P())
        self._model_of = mesh.spmd(model_of, (P("workers"), P()), P())
        self._mean_model = mesh.spmd(mean_model, (P("workers"),), P())
        self._evaluate = mesh.spmd(evaluate, (P(), P("workers")), (P(), P("workers")))
        self._test_metrics = task.test_metrics

    def distances(self, state: rps.TrainState) -> np.ndarray:
        """Returns how far each worker's model is from their mean, `[num_workers]`."""
        return of_all_workers(self._distance(state))

    def update_products(self, state: rps.TrainState) -> rps.UpdateProducts:
        """Returns what the workers' optimizers remember of their updates, of all workers."""
        products: rps.UpdateProducts = jax.device_get(self._update_products(state))
        return products

    def mean_model(self, state: rps.TrainState) -> Any:
        """Returns the mean of the workers' params and model states."""
        return self._mean_model(state)

    def model_of(self, state: rps.TrainState, worker: int) -> Any:
        """Returns the params and the model state of one worker."""
        return self._model_of(state, worker)

    def scores(self, model: Any, train: Shards, test: Shards) -> dict[str, float]:
        """Evaluates the mean model on all training and all test examples.

        Args:
            model: Its params and model state.
            train: All training examples.
            test: All test examples, dealt in their order.

        Returns:
            The entries of the metrics that an epoch ends with.
        """
        (loss, _, weight), _ = self._evaluate_split(model, train)
        return {"mean_model_train_loss": float(loss / weight), **self.test_scores(model, test)}

    def test_scores(self, model: Any, test: Shards) -> dict[str, float]:
        """Evaluates a model on all test examples; see `scores`."""
        (loss, correct, weight), predictions = self._evaluate_split(model, test)
        scores = {"test_loss": float(loss / weight), "test_accuracy": float(correct / weight)}
        if self._test_metrics is not None:
            scores |= self._test_metrics(_in_order(predictions, test.sizes))
        return scores

    def _evaluate_split(self, model: Any, shards: Shards) -> tuple[np.ndarray, list[jax.Array]]:
        """Returns the sums over a split, `[3]`, and the predictions of each batch."""
        results = []
        for start in range(0, shards.arrays["weight"].shape[1], shards.batch):
            rows = {k: a[:, start : start + shards.batch] for k, a in shards.arrays.items()}
            results.append(self._evaluate(model, rows))
        sums = np.sum([np.asarray(of_batch) for of_batch, _ in results], axis=0)
        return sums, [predictions for _, predictions in results]


def of_all_workers(tree: Any) -> Any:
    """Returns arrays `[num_workers, ...]` of all hosts in this one's memory."""
    return multihost_utils.process_allgather(tree, tiled=True)


def _in_order(batches: list[jax.Array], sizes: list[int]) -> np.ndarray:
    """Returns the predictions of all hosts in the order in which the examples were dealt."""
    of_workers = np.concatenate(of_all_workers(batches), axis=1)
    return np.concatenate([rows[:size] for rows, size in zip(of_workers, sizes, strict=True)])
