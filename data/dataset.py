"""What every data set looks like to the rest of the project."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Arrays = dict[str, np.ndarray]

SPLITS = ("train", "test")


@dataclass(frozen=True)
class Dataset:
    """A training and a test split, as arrays whose leading axis is the example.

    Attributes:
        description: The name to put beside figures, such as "CIFAR-10 (JPEG)".
        train: Arrays of the training split, each `[N, ...]`. They may be memory maps, so that
            indexing with a worker's examples reads only those.
        test: Arrays of the test split, with the same keys.
        label_key: The array that holds one class per example (`[N]`, int32); a label-skewed
            partition goes by it.
        num_classes: Number of outputs of a classifier. The labels that the model is trained on
            lie in `[0, num_classes)`.
        tokens: ATIS only: the word of each token id.
        tags: ATIS only: the slot tag of each tag id. The first `num_classes` are those of the
            training split; the rest occur in the test split alone.
    """

    description: str
    train: Arrays
    test: Arrays
    label_key: str
    num_classes: int
    tokens: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source:
    """A data set that was found and checked, and is not loaded yet.

    Finding takes less than a second and rejects what can be rejected by then; loading may take
    long. A command can therefore refuse bad input before it starts to work.

    Attributes:
        description: As in `Dataset`.
        num_train: Number of training examples.
        load: Reads the data. Raises `DataError` for damage that only a full read can show.
    """

    description: str
    num_train: int
    load: Callable[[], Dataset]
