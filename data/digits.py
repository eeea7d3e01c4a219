"""Scikit-learn's handwritten digits: 1797 real 8x8 images that need no download."""

from importlib.metadata import distribution

import numpy as np

from data.dataset import Dataset, Source

# Every fifth example of each class is for testing: a stratified split that needs no random
# numbers and so is the same with every version of every library.
_TEST_EVERY = 5
_NUM_TRAIN = 1442


def find() -> Source:
    """Returns the digits: 1442 training and 355 test images.

    The data set has "image" (uint8 `[N, 8, 8, 1]`; the 17 grey levels are spread over 0 to 255)
    and "label" (int32 `[N]`).
    """
    return Source(description="scikit-learn digits", num_train=_NUM_TRAIN, load=_load)


def _load() -> Dataset:
    # The file that sklearn.datasets.load_digits reads: to import that takes more than a second.
    file = distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz")
    rows = np.loadtxt(str(file), delimiter=",")
    image = np.rint(rows[:, :-1].reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    label = rows[:, -1].astype(np.int32)
    is_test = np.zeros(len(label), bool)
    for cls in np.unique(label):
        is_test[np.flatnonzero(label == cls)[_TEST_EVERY - 1 :: _TEST_EVERY]] = True
    return Dataset(
        description="scikit-learn digits",
        train={"image": image[~is_test], "label": label[~is_test]},
        test={"image": image[is_test], "label": label[is_test]},
        label_key="label",
        num_classes=10,
    )
