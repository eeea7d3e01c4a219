"""The digits of scikit-learn."""

import numpy as np

from data import digits


def test_split_is_fixed_stratified_and_complete():
    source = digits.find()
    dataset = source.load()
    again = digits.find().load()
    assert len(dataset.train["label"]) == source.num_train
    assert len(dataset.train["label"]) + len(dataset.test["label"]) == 1797
    for split, split_again in ((dataset.train, again.train), (dataset.test, again.test)):
        assert split["image"].shape == (len(split["label"]), 8, 8, 1)
        assert split["image"].dtype == np.uint8
        assert split["label"].dtype == np.int32
        np.testing.assert_array_equal(split["image"], split_again["image"])
    test_share = np.bincount(dataset.test["label"]) / np.bincount(
        np.concatenate([dataset.train["label"], dataset.test["label"]])
    )
    assert len(test_share) == dataset.num_classes == 10
    np.testing.assert_allclose(test_share, 0.2, atol=0.01)


def test_grey_levels_span_a_byte():
    image = digits.find().load().train["image"]
    assert (image.min(), image.max()) == (0, 255)
    assert len(np.unique(image)) == 17


def test_images_and_labels_are_those_that_scikit_learn_reads():
    from sklearn.datasets import load_digits  # Late: it takes a second.

    dataset, theirs = digits.find().load(), load_digits()
    images = np.rint(theirs.images * (255 / 16)).astype(np.uint8)
    found = [
        (label, image.tobytes())
        for split in (dataset.train, dataset.test)
        for label, image in zip(split["label"], split["image"], strict=True)
    ]
    expected = zip(theirs.target, (image.tobytes() for image in images), strict=True)
    assert sorted(found) == sorted(expected)
