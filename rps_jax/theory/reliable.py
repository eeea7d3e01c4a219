"""What an exchange waits for that waits for everybody: packets that are sent until they arrive."""

import itertools
import math


def rounds_until_all(drop_rate: float, packets: int) -> float:
    """Returns how often packets are sent in expectation, until the last one has arrived.

    All packets are sent, then those that were dropped, and so on, a round trip each: the mean of
    the largest of so many geometric variables.

    Args:
        drop_rate: p in [0, 1), of each packet, independent.
        packets: how many there are, at least 1.

    Returns:
        At least 1; about log(packets) / log(1 / p) more.

    Raises:
        ValueError: a number out of range.

    >>> print(f"{rounds_until_all(0.1, 1):.4f} {rounds_until_all(0.1, 10_000):.2f}")
    1.1111 4.74
    """
    if not 0 <= drop_rate < 1:
        raise ValueError(f"drop_rate={drop_rate}: expected a probability in [0, 1)")
    if packets < 1:
        raise ValueError(f"packets={packets}: expected at least 1")
    mean = 1.0
    for sent in itertools.count(1):
        # The probability that one of them has not arrived yet, exact where it is small.
        missing = -math.expm1(packets * math.log1p(-(drop_rate**sent)))
        mean += missing
        if missing < 1e-12:
            break
    return mean
