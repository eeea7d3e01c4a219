"""The consensus distance at which drops and local steps balance."""

import math

from rps_jax.theory.policies import moments


def kept(num_workers: int, drop_rate: float, all_gather_drop_rate: float | None = None) -> float:
    """Returns the share of its deviation from the mean that a worker keeps, in expectation.

    It is gamma in E[W] = gamma I + (1 - gamma) A. Arguments and errors are those of `alphas`.
    """
    return moments(num_workers, drop_rate, all_gather_drop_rate).kept


def steady_consensus_distance(
    num_workers: int,
    drop_rate: float,
    learning_rate: float,
    gradient_variance: float,
    dissimilarity: float = 0.0,
    all_gather_drop_rate: float | None = None,
) -> float:
    """Returns the root mean square of the consensus distance after exchanges, in steady state.

    RPS, plain SGD, drops that are independent over messages and exchanges. Exact where the
    gradient's noise has one variance and its mean does not depend on the model; curvature, which
    is left out, pulls the workers together, so that a training lies below where it is strong.

    Args:
        num_workers: n, at least 1.
        drop_rate: p in [0, 1).
        learning_rate: of the local step.
        gradient_variance: sigma^2: the mean over workers of E||g_i - E g_i||^2, whole model.
        dissimilarity: zeta^2: the mean over workers of ||E g_i - mean_j E g_j||^2, of data that
            stay with their workers.
        all_gather_drop_rate: p', where it differs.

    Returns:
        sqrt(E mean_i ||x_i - mean x||^2), as `consensus_distance` measures it; infinite where
        nothing is ever averaged.

    Raises:
        ValueError: as `alphas`, or a negative variance or dissimilarity.

    >>> print(f"{steady_consensus_distance(16, 0.1, 0.1, gradient_variance=4.0):.4f}")
    0.0606
    """
    for name, value in (
        ("gradient_variance", gradient_variance),
        ("dissimilarity", dissimilarity),
    ):
        if value < 0:
            raise ValueError(f"{name}={value}: expected at least 0")
    found = moments(num_workers, drop_rate, all_gather_drop_rate)
    beta, gamma = max(0.0, found.contraction), found.kept  # Rounding may leave less than 0.
    if beta >= 1 or gamma >= 1:
        return math.inf
    # A deviation that persists adds up to 1 / (1 - gamma) of itself; noise adds up in squares.
    noise = gradient_variance * (num_workers - 1) / num_workers
    persistent = dissimilarity * (1 + gamma) / (1 - gamma)
    return learning_rate * math.sqrt(beta * (noise + persistent) / (1 - beta))
