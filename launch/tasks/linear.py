"""Logistic regression on scikit-learn's digits: compiled and trained in seconds."""

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from data import Dataset, digits
from launch.tasks.task import Evaluation, Preset, Task

if TYPE_CHECKING:
    from launch.config import TrainConfig


def _make(dataset: Dataset, config: "TrainConfig") -> Task:
    # Imported late, as in all presets: the models take a second.
    import models
    from launch.tasks.evaluation import evaluation_of

    pixels = dataset.train["image"][0].size

    def init(key: jax.Array) -> tuple[Any, Any]:
        weights = 0.01 * jax.random.normal(key, (pixels, dataset.num_classes))
        return {"bias": jnp.zeros(dataset.num_classes), "weights": weights}, {}

    def logits_of(params: Any, image: jax.Array) -> jax.Array:
        flat_BxD = image.reshape(len(image), -1).astype(config.dtype) / 255
        product = flat_BxD @ params["weights"].astype(config.dtype)
        return product.astype(jnp.float32) + params["bias"][None]

    def loss_fn(params: Any, model_state: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, Any]:
        del key
        return models.cross_entropy(logits_of(params, batch["image"]), batch["label"]), model_state

    def evaluate(params: Any, model_state: Any, batch: Any) -> Evaluation:
        del model_state
        return evaluation_of(logits_of(params, batch["image"]), batch["label"], batch["weight"])

    return Task(
        model_name="Logistic regression",
        init=init,
        loss_fn=loss_fn,
        evaluate=evaluate,
        test_metrics=None,
        score="test_accuracy",
    )


LINEAR = Preset(
    defaults={"epochs": 10},
    data="the digits come with scikit-learn",
    takes_path="never",
    find=lambda data_path, download: digits.find(),
    make=_make,
)
