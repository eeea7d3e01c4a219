"""The trainings that a figure is made of, and their curves."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import numpy as np

from data import DataError, Source, subset
from launch.cli.command_line import exactly
from launch.config import TrainConfig
from launch.figures.paper import Scale
from launch.tasks.source import check_fits, find_source, of_flag
from launch.trainer.many_runs import ends_of_epochs

Shared = Literal["rps", "gradient-averaging", "gradient-averaging-zero"]
"""What is shared: models, or gradients, with `on_miss` "own" or "zero"."""
_FLAGS: dict[Shared, dict[str, Any]] = {
    "rps": {"algorithm": "rps"},
    "gradient-averaging": {"algorithm": "gradient-averaging"},
    "gradient-averaging-zero": {"algorithm": "gradient-averaging", "on_miss": "zero"},
}


class Run(NamedTuple):
    """A training of a figure.

    Attributes:
        shared: What is averaged, and how.
        arrival: Probability that a message arrives, in percent.
        config: Configuration of the training.
    """

    shared: Shared
    arrival: float
    config: TrainConfig


class Curve(NamedTuple):
    """The trainings of all seeds with one algorithm and one probability of arrival.

    Attributes:
        shared: As in `Run`.
        arrival: As in `Run`.
        epochs: The ends of the epochs, `[epochs]`.
        mean_model_train_loss: Loss of the mean model on all training examples, `[seeds, epochs]`.
        train_loss: Mean loss of the workers' mini-batches in an epoch, `[seeds, epochs]`.
        test_metric: Test metric of the mean model, `[seeds, epochs]`.
        consensus_distance: `[seeds, epochs]`.
    """

    shared: Shared
    arrival: float
    epochs: np.ndarray
    mean_model_train_loss: np.ndarray
    train_loss: np.ndarray
    test_metric: np.ndarray
    consensus_distance: np.ndarray


def plan(
    base: TrainConfig, pairs: Sequence[tuple[Shared, float]], seeds: Sequence[int]
) -> list[Run]:
    """Returns a training for each seed, algorithm and probability of arrival, seed by seed.

    Args:
        base: What they have in common; `output_dir` is the folder of their folders.
        pairs: Algorithms and probabilities in percent.
        seeds: Seeds of the trainings.
    """
    assert base.output_dir is not None
    runs = []
    for seed in seeds:
        for shared, arrival in pairs:
            config = replace(
                base,
                **_FLAGS[shared],
                drop_rate=round(1 - arrival / 100, 9),
                seed=seed,
                output_dir=base.output_dir / f"{shared}-{exactly(arrival)}-{seed}",
            )
            runs.append(Run(shared, arrival, config))
    return runs


def find_data(scale: Scale, configs: Sequence[TrainConfig]) -> Source:
    """Returns the data of trainings at a scale, as `find_source` does those of one."""
    source = find_source(configs[0])
    if scale.num_train is not None:
        try:
            source = subset(source, scale.num_train, scale.num_test)
        except DataError as error:
            raise of_flag(configs[0], error) from error
    for config in configs:
        check_fits(config, source.num_train)
    return source


def curves_of(
    runs: Sequence[Run], metrics: Sequence[list[dict[str, Any]]], score: str
) -> list[Curve]:
    """Returns the curves of trainings that are done, in the order of the first seed.

    Args:
        runs: The trainings.
        metrics: The lines of metrics of each.
        score: Name of the test metric.
    """
    seeds: dict[tuple[Shared, float], list[list[dict[str, Any]]]] = {}
    for run, lines in zip(runs, metrics, strict=True):
        seeds.setdefault((run.shared, run.arrival), []).append(ends_of_epochs(lines))

    def values(of_seeds: list[list[dict[str, Any]]], key: str) -> np.ndarray:
        return np.array([[line[key] for line in ends] for ends in of_seeds])

    return [
        Curve(
            shared,
            arrival,
            values(of_seeds, "epoch")[0],
            values(of_seeds, "mean_model_train_loss"),
            values(of_seeds, "train_loss"),
            values(of_seeds, score),
            values(of_seeds, "consensus_distance"),
        )
        for (shared, arrival), of_seeds in seeds.items()
    ]
