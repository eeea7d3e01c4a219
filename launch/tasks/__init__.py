"""A task is a data set with the model that learns it: what a preset names, ready to train."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import models
from data import Dataset, random_crop_and_flip
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
    """What the training loop needs to know of a preset.

    Attributes:
        model_name: For people.
        init: `key -> (params, model_state)`.
        loss_fn: The loss of `rps_jax.make_train_step`.
        evaluate: `(params, model_state, batch) -> Evaluation`, on padded batches.
        test_metrics: Of all test predictions, whatever an average over batches cannot give; None
            if there is nothing of the kind.
        score: The test metric that the task is judged by.
    """

    model_name: str
    init: Callable[[jax.Array], tuple[Any, Any]]
    loss_fn: Callable[[Any, Any, Any, jax.Array], tuple[jax.Array, Any]]
    evaluate: Callable[[Any, Any, Any], Evaluation]
    test_metrics: Callable[[np.ndarray], dict[str, float]] | None
    score: str


def make_task(config: TrainConfig, dataset: Dataset) -> Task:
    """Returns the task of a preset; it keeps no training data."""
    dtype = jnp.dtype(config.dtype)
    if config.preset == "atis-lstm":
        return _slot_filling(dataset, dtype)
    depth = {"digits": 8, "cifar10-resnet20": 20, "cifar10-resnet110": 110}[config.preset]
    return _image_classification(dataset, depth, dtype, augment=config.preset != "digits")


# Mean and standard deviation of the pixels of the training images, by channel.
_PIXELS = {
    "digits": ((77.8,), (95.9,)),
    "cifar10": ((125.3, 123.0, 113.9), (63.0, 62.1, 66.7)),
}


def _image_classification(dataset: Dataset, depth: int, dtype: Any, augment: bool) -> Task:
    model = models.ResNet(depth=depth, num_classes=dataset.num_classes, dtype=dtype)
    shape = dataset.train["image"].shape[1:]
    mean, deviation = (np.array(value, np.float32) for value in _PIXELS[dataset.name])

    def normalise(images_BxHxWxC: jax.Array) -> jax.Array:
        return (images_BxHxWxC.astype(jnp.float32) - mean[None, None, None]) / deviation[
            None, None, None
        ]

    def init(key: jax.Array) -> tuple[Any, Any]:
        variables = model.init(key, jnp.zeros((1, *shape)), train=False)
        return variables["params"], variables["batch_stats"]

    def loss_fn(params: Any, model_state: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, Any]:
        images = random_crop_and_flip(key, batch["image"]) if augment else batch["image"]
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
        return _evaluation(logits, batch["label"], batch["weight"])

    return Task(
        model_name=f"ResNet-{depth}",
        init=init,
        loss_fn=loss_fn,
        evaluate=evaluate,
        test_metrics=None,
        score="test_accuracy",
    )


def _slot_filling(dataset: Dataset, dtype: Any) -> Task:
    model = models.SlotTagger(len(dataset.tokens), dataset.num_classes, dtype=dtype)
    length = dataset.train["tokens"].shape[1]
    num_classes, tags = dataset.num_classes, dataset.tags
    test_lengths = dataset.test["length"]
    truth = models.decode_tags(dataset.test["tags"], test_lengths, tags)

    def init(key: jax.Array) -> tuple[Any, Any]:
        tokens = jnp.zeros((1, length), jnp.int32)
        return model.init(key, tokens, jnp.ones(1, jnp.int32))["params"], {}

    def loss_fn(params: Any, model_state: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, Any]:
        del key
        logits = model.apply({"params": params}, batch["tokens"], batch["length"])
        mask = models.length_mask(batch["length"], length)
        return models.cross_entropy(jnp.asarray(logits), batch["tags"], mask), model_state

    def evaluate(params: Any, model_state: Any, batch: Any) -> Evaluation:
        del model_state
        logits = model.apply({"params": params}, batch["tokens"], batch["length"])
        mask = models.length_mask(batch["length"], length) * batch["weight"][:, None]
        # Tags that the training data never shows have no logit: they are in the F1, as missed.
        known = batch["tags"] < num_classes
        return _evaluation(logits, jnp.where(known, batch["tags"], 0), mask * known)

    def test_metrics(predictions: np.ndarray) -> dict[str, float]:
        said = models.decode_tags(predictions, test_lengths, tags)
        return {"test_slot_f1": models.slot_f1(truth, said)}

    return Task(
        model_name="LSTM",
        init=init,
        loss_fn=loss_fn,
        evaluate=evaluate,
        test_metrics=test_metrics,
        score="test_slot_f1",
    )


def _evaluation(logits: Any, labels: jax.Array, weights: jax.Array) -> Evaluation:
    total = weights.sum()
    return Evaluation(
        loss=models.cross_entropy(logits, labels, weights) * total,
        correct=models.accuracy(logits, labels, weights) * total,
        weight=total,
        predictions=logits.argmax(-1).astype(jnp.int32),
    )
