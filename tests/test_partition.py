"""Which worker gets which examples."""

import numpy as np
import pytest

from data import partition

LABELS = np.repeat(np.arange(10), 100)[np.random.default_rng(0).permutation(1000)]


def class_counts(parts):
    return np.array([np.bincount(LABELS[part], minlength=10) for part in parts])


@pytest.mark.parametrize("label_skew", [None, 1e-300, 1e-3, 0.5, 1e6])
@pytest.mark.parametrize("num_workers", [1, 3, 16, 1000])
def test_uses_every_example_once_in_equal_shares(num_workers, label_skew):
    parts = partition(LABELS, num_workers, label_skew=label_skew, seed=0)
    sizes = [len(part) for part in parts]
    assert len(sizes) == num_workers
    assert max(sizes) - min(sizes) <= 1
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(len(LABELS)))


@pytest.mark.parametrize("label_skew", [None, 0.5])
def test_is_a_function_of_the_seed(label_skew):
    first, again, other = (
        np.concatenate(partition(LABELS, 4, label_skew=label_skew, seed=seed)) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_a_large_concentration_is_no_skew():
    # Counts are then multinomial: 100 draws, 10 per class, standard deviation 3. The last
    # workers are left out: they get what the others have left.
    counts = class_counts(partition(LABELS, 10, label_skew=1e9, seed=0))[:5]
    assert abs(counts - 10).max() < 15


def test_skew_grows_as_the_concentration_falls():
    spread = [
        class_counts(partition(LABELS, 10, label_skew=skew, seed=0)).std(axis=0).mean()
        for skew in (100.0, 1.0, 0.01)
    ]
    assert spread[0] < spread[1] < spread[2]


def test_a_tiny_concentration_gives_the_first_worker_one_class():
    # Ten workers of 100 examples and ten classes of 100: none has to run out.
    counts = class_counts(partition(LABELS, 10, label_skew=1e-6, seed=0))
    assert counts[0].max() == 100


def test_proportions_follow_those_of_the_data():
    # With class 1 three times as frequent, a worker's mean share of it is 3/4. It is the first
    # worker that draws before any class runs out; standard error 0.25 / sqrt(400).
    labels = np.repeat([0, 1], [100, 300])
    shares = [labels[partition(labels, 40, label_skew=2.0, seed=s)[0]].mean() for s in range(400)]
    assert abs(np.mean(shares) - 0.75) < 5 * 0.0145


@pytest.mark.parametrize(
    ("num_workers", "label_skew", "message"),
    [
        (0, None, r"num_workers=0: expected 1 to 1000"),
        (1001, None, r"num_workers=1001: expected 1 to 1000"),
        (4, 0.0, r"label_skew=0.0: expected a positive finite"),
        (4, -1.0, r"label_skew=-1.0"),
        (4, float("nan"), r"label_skew=nan"),
        (4, float("inf"), r"label_skew=inf"),
    ],
)
def test_rejects(num_workers, label_skew, message):
    with pytest.raises(ValueError, match=message) as error:
        partition(LABELS, num_workers, label_skew=label_skew, seed=0)
    assert "\n" not in str(error.value)
