"""What a line of metrics has of the workers' models and links."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

import rps_jax as rps
from launch.reports.links import LinkStatistics, as_list
from launch.trainer.evaluate import of_all_workers
from launch.trainer.prediction import predict_together
from launch.trainer.schedule import Position
from launch.trainer.setup import Setup
from rps_jax import LinkCounts

_MOST_SCORED = 64
"""Most workers whose own models are scored; of more, so many at equal distances."""


def measure_together(setup: Setup, at: Position, state: rps.TrainState) -> dict[str, Any]:
    """Returns what all workers' models are worth, together: every process measures its part."""
    evaluator, n = setup.evaluator, setup.config.num_workers
    measured = of_distances(evaluator.distances(state), at)
    measured |= predict_together(setup, at, state)
    measured["bytes_sent_per_worker"] = setup.bytes_sent(at.step)
    if state.links:
        measured |= measure_links(setup, at, state)
    if not (at.epoch_ends and math.isfinite(measured["consensus_distance"])):
        return measured
    measured |= evaluator.scores(evaluator.mean_model(state), setup.train, setup.test)
    if at.scores_workers:
        models = (
            evaluator.model_of(state, worker) for worker in range(0, n, -(-n // _MOST_SCORED))
        )
        measured |= of_models(setup, models)
    return measured


def measure_links(setup: Setup, at: Position, state: rps.TrainState) -> dict[str, Any]:
    """Returns what a line says of what all workers have counted in the epoch."""
    rows = of_all_workers(state.links.packed)
    return of_links(dict(enumerate(map(LinkCounts, rows))), len(rows), at)


def of_distances(distances: np.ndarray, at: Position) -> dict[str, Any]:
    """Returns what a line says of the workers' distances from their mean, `[workers]`."""
    measured: dict[str, Any] = {
        "consensus_distance": float(np.sqrt(np.mean(np.square(distances, dtype=np.float64)))),
        "smallest_distance": float(distances.min()),
        "largest_distance": float(distances.max()),
    }
    return measured | ({"distances": as_list(distances)} if at.epoch_ends else {})


def of_links(counted: Mapping[int, LinkCounts], num_workers: int, at: Position) -> dict[str, Any]:
    """Returns what a line says of what workers have counted in the epoch, by their numbers."""
    statistics = LinkStatistics.of(counted, num_workers)
    return statistics.in_short() | (statistics.in_full() if at.epoch_ends else {})


def of_models(setup: Setup, models: Iterable[Any]) -> dict[str, float]:
    """Returns what a line says of the test scores of workers' own models."""
    score = setup.task.score
    scores = [setup.evaluator.test_scores(model, setup.test)[score] for model in models]
    return {f"worst_worker_{score}": min(scores), f"best_worker_{score}": max(scores)}
