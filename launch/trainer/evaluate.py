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
            return rps.consensus_distance(state.params, axis)

        def mean_model(state: rps.TrainState) -> Any:
            return rps.mean_model((state.params, state.model_state), axis)

        def evaluate(model: Any, batch: Any) -> Any:
            params, model_state = model
            result = task.evaluate(params, model_state, batch)
            sums = jnp.stack([result.loss, result.correct, result.weight])
            return jax.lax.psum(sums, axis), result.predictions

        self._distance = mesh.spmd(distance, (P("workers"),), P())
        self._mean_model = mesh.spmd(mean_model, (P("workers"),), P())
        self._evaluate = mesh.spmd(evaluate, (P(), P("workers")), (P(), P("workers")))
        self._test_metrics = task.test_metrics

    def consensus_distance(self, state: rps.TrainState) -> float:
        """Returns how far the workers' models are from their mean."""
        return float(self._distance(state))

    def mean_model(self, state: rps.TrainState) -> Any:
        """Returns the mean of the workers' params and model states."""
        return self._mean_model(state)

    def scores(self, model: Any, train: Shards, test: Shards) -> dict[str, float]:
        """Evaluates the mean model on all training and all test examples.

        Args:
            model: Its params and model state.
            train: All training examples.
            test: All test examples, dealt in their order.

        Returns:
            The entries of the metrics that an epoch ends with.
        """
        (train_loss, _, train_weight), _ = self._evaluate_split(model, train)
        (loss, correct, weight), predictions = self._evaluate_split(model, test)
        scores = {
            "mean_model_train_loss": float(train_loss / train_weight),
            "test_loss": float(loss / weight),
            "test_accuracy": float(correct / weight),
        }
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


def _in_order(batches: list[jax.Array], sizes: list[int]) -> np.ndarray:
    """Returns the predictions of all hosts in the order in which the examples were dealt."""
    everywhere = [multihost_utils.process_allgather(batch, tiled=True) for batch in batches]
    of_workers = np.concatenate(everywhere, axis=1)
    return np.concatenate([rows[:size] for rows, size in zip(of_workers, sizes, strict=True)])
