"""A part of a data set, for trials that are to be short."""

import dataclasses

import numpy as np

from data.dataset import Dataset, Source
from data.errors import DataError


def subset(source: Source, num_train: int, num_test: int | None = None) -> Source:
    """Returns some of the examples of a data set, drawn at random but always the same ones.

    Args:
        source: The data set.
        num_train: How many training examples to keep.
        num_test: The same of the test examples; None for all.

    Raises:
        DataError: There are fewer training examples; of the test examples only `load` can tell.
    """
    if num_train > source.num_train:
        raise DataError(f"{source.description}: expected at least {num_train} training examples")

    def load() -> Dataset:
        dataset = source.load()
        test = dataset.test if num_test is None else _some(dataset, dataset.test, num_test)
        return dataclasses.replace(
            dataset,
            description=description,
            train=_some(dataset, dataset.train, num_train),
            test=test,
        )

    description = f"{num_train:,} of {source.num_train:,} examples of {source.description}"
    return Source(description, num_train, load)


def _some(dataset: Dataset, arrays: dict[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
    found = len(arrays[dataset.label_key])
    if count > found:
        raise DataError(f"{dataset.description}: found {found} examples, expected {count}")
    rows = np.sort(np.random.default_rng(0).permutation(found)[:count])
    return {key: array[rows] for key, array in arrays.items()}
