"""What a preset is, and the task that it makes of its data."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax
import numpy as np

from data import Dataset, Source

if TYPE_CHECKING:
    from launch.config import TrainConfig


class Evaluation(NamedTuple):
    """Sums over the entries of a batch, and what the model said.

    Attributes:
        loss: Sum of the losses, over images or tokens.
        correct: How many of them the model gets right.
        weight: How many there are.
        predictions: Most likely class of each, int32, `[batch]` or `[batch, length]`.
    """

    loss: jax.Array
    correct: jax.Array
    weight: jax.Array
    predictions: jax.Array


@dataclasses.dataclass(frozen=True)
class Task:
    """Data with the model that learns them, as the training loop needs it.

    Attributes:
        model_name: For people.
        init: `key -> (params, model_state)`.
        loss_fn: The loss of `rps_jax.make_train_step`.
        evaluate: `(params, model_state, batch) -> Evaluation`, on padded batches.
        test_metrics: Metrics of all test predictions that no average over batches gives; None
            if there is nothing of the kind.
        score: The test metric that the task is judged by.
    """

    model_name: str
    init: Callable[[jax.Array], tuple[Any, Any]]
    loss_fn: Callable[[Any, Any, Any, jax.Array], tuple[jax.Array, Any]]
    evaluate: Callable[[Any, Any, Any], Evaluation]
    test_metrics: Callable[[np.ndarray], dict[str, float]] | None
    score: str


@dataclasses.dataclass(frozen=True)
class Preset:
    """An entry of the registry of presets.

    Attributes:
        defaults: Values of flags that differ from the defaults of `TrainConfig`.
        data: What --data-path must be, or why there is none; for people.
        takes_path: Whether --data-path is given.
        can_download: Whether --download may be given instead.
        find: `(data_path, download) -> source`, in a second or so. Raises `DataError`.
        make: `(dataset, config) -> task`; keeps no training data.
        can_augment: Whether there is an augmentation of the training data.
    """

    defaults: Mapping[str, Any]
    data: str
    takes_path: Literal["never", "maybe", "always"]
    find: Callable[[Path | None, bool], Source]
    make: Callable[[Dataset, "TrainConfig"], Task]
    can_download: bool = False
    can_augment: bool = False
