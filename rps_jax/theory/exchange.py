"""Exact theory of one exchange under independent drops.

Write V = [v_1 ... v_n] for the workers' values of one block, W for the random matrix by which the
exchange mixes them (afterwards V W), A = 11^T / n for the mean. The server of the block is uniform
over the workers; m = n - 1; p is the drop rate of the reduce-scatter, p' that of the all-gather;
K is the number of workers that reach the server, R the number that the server reaches, itself
counted in both:

    E[1/K] = (1 - p^n) / (n (1 - p))    E[R] = 1 + m (1 - p')    E[R^2] = E[R]^2 + m p' (1 - p')

    E[W W^T]   = alpha_1 I + (1 - alpha_1) A,
        alpha_1 = (E[R] E[1/K] + m p' - 1) / m
    E[W A W^T] = alpha_2 I + (1 - alpha_2) A,
        alpha_2 = ((E[R^2] E[1/K] + n - E[R]
                    + (2/m) (1 - E[1/K]) (n E[R] - E[R^2])) / n - 1) / m

so that, exactly, with D = ||V (I - A)||^2 the squared consensus distance (times n),

    E||V W (I - A)||^2 = (alpha_1 - alpha_2) D    what one exchange leaves of it: `contraction`
    E||V (W - I) A||^2 = alpha_2 D                how far it moves the mean: `drift`

The paper bounds the two as alpha_1, alpha_2 = O(p) and alpha_2 = O(p (1 - p) / n).
"""

from typing import NamedTuple


class Alphas(NamedTuple):
    """The two constants of an exchange.

    Attributes:
        alpha_1: of E[W W^T].
        alpha_2: of E[W A W^T].
    """

    alpha_1: float
    alpha_2: float


def alphas(num_workers: int, drop_rate: float, all_gather_drop_rate: float | None = None) -> Alphas:
    """Returns alpha_1 and alpha_2 of one exchange under `Bernoulli` drops, exactly.

    Args:
        num_workers: n, at least 1. A single worker has nothing to mix: both are 0.
        drop_rate: p in [0, 1], of the reduce-scatter and, by default, of the all-gather.
        all_gather_drop_rate: p', where it differs.

    Raises:
        ValueError: fewer than one worker, or a rate outside [0, 1].

    >>> alpha_1, alpha_2 = alphas(num_workers=16, drop_rate=0.1)
    >>> print(f"{alpha_1:.9f} {alpha_2:.9f}")
    0.100462963 0.011356481
    """
    gather_rate = gather_rate_of(num_workers, drop_rate, all_gather_drop_rate)
    if num_workers == 1:
        return Alphas(0.0, 0.0)
    n, m = num_workers, num_workers - 1
    inverse_k = mean_inverse(n, drop_rate)
    r = 1 + m * (1 - gather_rate)
    r_squared = r**2 + m * gather_rate * (1 - gather_rate)
    alpha_1 = (r * inverse_k + m * gather_rate - 1) / m
    mixed = r_squared * inverse_k + n - r + 2 / m * (1 - inverse_k) * (n * r - r_squared)
    return Alphas(alpha_1, (mixed / n - 1) / m)


def contraction(
    num_workers: int, drop_rate: float, all_gather_drop_rate: float | None = None
) -> float:
    """Returns the expected factor of one exchange on the squared consensus distance.

    Arguments and errors are those of `alphas`.
    """
    alpha_1, alpha_2 = alphas(num_workers, drop_rate, all_gather_drop_rate)
    return alpha_1 - alpha_2


def drift(num_workers: int, drop_rate: float, all_gather_drop_rate: float | None = None) -> float:
    """Returns the expected squared move of the mean model in one exchange.

    In units of the squared consensus distance before it. Arguments and errors are those of
    `alphas`.
    """
    return alphas(num_workers, drop_rate, all_gather_drop_rate).alpha_2


def largest_drop_rate(num_workers: int, tolerance: float) -> float:
    """Returns the largest drop rate, of both phases, whose contraction is within a tolerance.

    Args:
        num_workers: n, at least 1.
        tolerance: the largest contraction that is accepted, in [0, 1].

    Raises:
        ValueError: fewer than one worker, or a tolerance outside [0, 1].

    >>> print(f"{largest_drop_rate(num_workers=16, tolerance=0.1):.4f}")
    0.1120
    """
    if not 0 <= tolerance <= 1:
        raise ValueError(f"tolerance={tolerance}: expected a number in [0, 1]")
    low, high = 0.0, 1.0
    if contraction(num_workers, high) <= tolerance:
        return high
    # The contraction rises with the rate: halve the interval down to the precision of a float.
    for _ in range(60):
        middle = (low + high) / 2
        if contraction(num_workers, middle) <= tolerance:
            low = middle
        else:
            high = middle
    return low


def mean_inverse(num_workers: int, drop_rate: float) -> float:
    """Returns E[1/K]."""
    # As a geometric sum, which holds at p = 1 too.
    return sum(drop_rate**k for k in range(num_workers)) / num_workers


def gather_rate_of(num_workers: int, drop_rate: float, all_gather_drop_rate: float | None) -> float:
    """Returns the drop rate of the all-gather.

    Raises:
        ValueError: fewer than one worker, or a rate outside [0, 1].
    """
    gather_rate = drop_rate if all_gather_drop_rate is None else all_gather_drop_rate
    if num_workers < 1:
        raise ValueError(f"num_workers={num_workers}: expected at least 1")
    for name, rate in (("drop_rate", drop_rate), ("all_gather_drop_rate", gather_rate)):
        if not 0 <= rate <= 1:
            raise ValueError(f"{name}={rate}: expected a probability in [0, 1]")
    return gather_rate
