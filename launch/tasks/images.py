"""Image classification with a ResNet."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

import models
from data import Dataset, random_crop_and_flip
from launch.tasks.evaluation import evaluation_of
from launch.tasks.task import Evaluation, Task

if TYPE_CHECKING:
    from launch.config import TrainConfig


def image_classification(
    dataset: Dataset,
    config: "TrainConfig",
    *,
    depth: int,
    mean: Sequence[float],
    deviation: Sequence[float],
) -> Task:
    """Returns the task of learning the label of an image with a ResNet.

    Args:
        dataset: Images, `[N, height, width, channels]`, uint8.
        config: Of the run, which says whether images are augmented, and the type of computation.
        depth: Number of layers of the ResNet.
        mean: Mean of the training images' pixels, by channel.
        deviation: Their standard deviation.
    """
    dtype = jnp.dtype(config.dtype)
    model = models.ResNet(depth=depth, num_classes=dataset.num_classes, dtype=dtype)
    shape = dataset.train["image"].shape[1:]
    mean_C, deviation_C = (np.array(x, np.float32)[None, None, None] for x in (mean, deviation))

    def normalise(images_BxHxWxC: jax.Array) -> jax.Array:
        return (images_BxHxWxC.astype(jnp.float32) - mean_C) / deviation_C

    def init(key: jax.Array) -> tuple[Any, Any]:
        variables = model.init(key, jnp.zeros((1, *shape)), train=False)
        return variables["params"], variables["batch_stats"]

    def loss_fn(params: Any, model_state: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, Any]:
        images = random_crop_and_flip(key, batch["image"]) if config.augment else batch["image"]
        logits, updated = model.apply(
            {"params": params, "batch_stats": model_state},
            normalise(images),
            train=True,
            mutable=["batch_stats"],
        )
        return models.cross_entropy(logits, batch["label"]), updated["batch_stats"]

    def evaluate(params: Any, model_state: Any, batch: Any) -> Evaluation:
        variables = {"params": params, "batch_stats": model_state}
        logits = model.apply(variables, normalise(batch["image"]), train=False)
        return evaluation_of(logits, batch["label"], batch["weight"])

    return Task(
        model_name=f"ResNet-{depth}",
        init=init,
        loss_fn=loss_fn,
        evaluate=evaluate,
        test_metrics=None,
        score="test_accuracy",
    )
