"""The sums of an evaluation, from the logits of a model."""

from typing import Any

import jax
import jax.numpy as jnp

import models
from launch.tasks.task import Evaluation


def evaluation_of(logits: Any, labels: jax.Array, weights: jax.Array) -> Evaluation:
    """Returns the evaluation of a batch.

    Args:
        logits: `[..., classes]`.
        labels: The right classes, `[...]`.
        weights: 1 of an entry that counts and 0 of padding, `[...]`.
    """
    total = weights.sum()
    return Evaluation(
        loss=models.cross_entropy(logits, labels, weights) * total,
        correct=models.accuracy(logits, labels, weights) * total,
        weight=total,
        predictions=logits.argmax(-1).astype(jnp.int32),
    )
