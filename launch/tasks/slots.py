"""Slot filling with an LSTM."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import models
from data import Dataset
from launch.tasks.evaluation import evaluation_of
from launch.tasks.task import Evaluation, Task


def slot_filling(dataset: Dataset, dtype: str) -> Task:
    """Returns the task of learning the slot tag of each word.

    Args:
        dataset: Sentences of one length, `[N, length]`, padded.
        dtype: Type of the computation.
    """
    model = models.SlotTagger(len(dataset.tokens), dataset.num_classes, dtype=jnp.dtype(dtype))
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
        return evaluation_of(logits, jnp.where(known, batch["tags"], 0), mask * known)

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
