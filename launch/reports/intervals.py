"""Means with their 95% confidence intervals: the one meaning of ± in everything printed."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats


class Interval(NamedTuple):
    """A mean over seeds.

    Attributes:
        mean: Mean over the seeds.
        half_width: Half-width of its 95% confidence interval, by Student's t; nan for one seed.
    """

    mean: float
    half_width: float

    def __str__(self) -> str:
        if not self.half_width > 0:
            return f"{self.mean:.4g}"
        # Two digits of the half-width, and the mean to the same place.
        places = max(0, 1 - math.floor(math.log10(self.half_width)))
        if places > 7:
            return f"{self.mean:.1e} ± {self.half_width:.1e}"
        return f"{self.mean:.{places}f} ± {self.half_width:.{places}f}"


def interval(values: Sequence[float] | np.ndarray) -> Interval:
    """Returns the mean of a value a seed, and how sure it is."""
    n = len(values)
    if n < 2:
        return Interval(float(values[0]), float("nan"))
    return Interval(float(np.mean(values)), half_width(np.std(values, ddof=1) / n**0.5, n))


def half_width(standard_error: float, n: int) -> float:
    """Returns the half-width of the 95% confidence interval of a mean of n values."""
    return float(stats.t.ppf(0.975, n - 1) * standard_error)


def values_to_decide(found: Interval, n: int, margin: float, most: int = 1000) -> int | None:
    """Returns how many values would make an interval narrower than a margin.

    Args:
        found: Mean and interval of n values, n at least 2.
        n: How many there are.
        margin: Distance of the mean from what it is to be told from.
        most: Numbers above it are not looked for.

    Returns:
        The number, if the mean and standard deviation of more values are those of these; None if it
        is greater than `most`.
    """
    deviation = found.half_width / half_width(n**-0.5, n)
    more = (m for m in range(n, most + 1) if half_width(deviation / m**0.5, m) < margin)
    return next(more, None)
