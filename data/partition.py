"""Which worker trains on which examples."""

import math

import numpy as np


def partition(
    labels: np.ndarray, num_workers: int, *, label_skew: float | None = None, seed: int
) -> list[np.ndarray]:
    """Splits examples over workers: each is used exactly once, sizes differ by at most one.

    Without `label_skew` the split is uniformly random, so that workers' shards are independent
    and identically distributed. With it, worker i draws its class proportions
    `q_i ~ Dirichlet(label_skew * p)`, where p are the class proportions of `labels`, and then its
    examples from `q_i` without replacement; a class that runs out is left out and `q_i`
    renormalised (Hsu et al. 2019, arXiv:1909.06335, section 3). Large values approach the random
    split; towards 0, a worker sees a single class. The workers draw in turn, so that the last
    ones get what classes the others have left.

    Args:
        labels: Class of each example, `[N]`.
        num_workers: Number of workers, 1 to N.
        label_skew: Concentration of the Dirichlet distribution, positive; None for no skew.
        seed: The split is a function of this and the other arguments.

    Returns:
        For each worker, the indices of its examples.

    Raises:
        ValueError: An argument is out of range.
    """
    if not 1 <= num_workers <= len(labels):
        raise ValueError(
            f"num_workers={num_workers}: expected 1 to {len(labels)}, the number of examples"
        )
    if label_skew is not None and not (math.isfinite(label_skew) and label_skew > 0):
        raise ValueError(f"label_skew={label_skew}: expected a positive finite number")
    rng = np.random.default_rng(seed)
    if label_skew is None:
        return np.array_split(rng.permutation(len(labels)), num_workers)
    return _dirichlet(labels, num_workers, label_skew, rng)


def _dirichlet(
    labels: np.ndarray, num_workers: int, label_skew: float, rng: np.random.Generator
) -> list[np.ndarray]:
    classes, sizes = np.unique(labels, return_counts=True)
    pools = [rng.permutation(np.flatnonzero(labels == cls)) for cls in classes]
    left = sizes.copy()
    # array_split fixes the shard sizes, as it does without skew.
    shards = np.array_split(np.empty(len(labels), np.int64), num_workers)
    parts = []
    for shard in shards:
        proportions = rng.dirichlet(label_skew * sizes / len(labels))
        counts = _draw_counts(len(shard), proportions, left, rng)
        parts.append(
            np.concatenate([pools[c][left[c] - n : left[c]] for c, n in enumerate(counts)])
        )
        left -= counts
    return parts


def _draw_counts(
    num_draws: int, proportions: np.ndarray, available: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Counts per class of draws made one by one, each from the classes that still have examples."""
    counts = np.zeros_like(available)
    while missing := num_draws - int(counts.sum()):
        weights = np.where(counts < available, proportions, 0.0)
        if not weights.sum() > 0:
            # All of the worker's proportions underflowed, or its classes are used up.
            weights = (available - counts).astype(float)
        draws = rng.multinomial(missing, weights / weights.sum())
        # Draws beyond what a class holds are made again from the classes that are left.
        counts = np.minimum(counts + draws, available)
    return counts
