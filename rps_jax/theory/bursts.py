"""Exact theory of bursts within one exchange: the Gilbert-Elliott model, begun stationary."""

from typing import Any

import numpy as np
import numpy.typing as npt

from rps_jax.channels import GilbertElliott


def whole_block(
    drop_rate: float,
    packets: int,
    mean_burst: float | None = None,
    good_drop_rate: float = 0.0,
    bad_drop_rate: float = 1.0,
) -> float:
    """Returns the probability that all packets of one message arrive.

    A link is good or bad, a Markov chain that moves before every packet; given its state, packets
    are dropped independently of each other. Each packet by itself is dropped at the same rate
    whatever the bursts, so that an average by packets contracts as `alphas` says; what counts a
    block only whole sees a drop rate of 1 - `whole_block`.

    Args:
        drop_rate: p in [0, 1], of each packet.
        packets: how many a message is cut into, at least 1.
        mean_burst: how many packets a link stays bad for, in the mean, at least 1 and s / (1 - s),
            for s the share of time that it is bad; None for independent drops.
        good_drop_rate: of packets while the link is good, as of `GilbertElliott`; at most p.
        bad_drop_rate: the same while it is bad; at least p.

    Raises:
        ValueError: a number out of range, or numbers that do not fit together.

    >>> print(f"{whole_block(0.1, 32):.4f} {whole_block(0.1, 32, mean_burst=8):.4f}")
    0.0343 0.5834
    """
    if packets < 1:
        raise ValueError(f"packets={packets}: expected at least 1")
    if mean_burst is None:
        mean_burst = 1 / (1 - drop_rate) if 0 <= drop_rate < 1 else 1.0
        good_drop_rate, bad_drop_rate = 0.0, 1.0
    states, moves = burst_chain(drop_rate, mean_burst, good_drop_rate, bad_drop_rate)
    arrives = np.diag([1 - good_drop_rate, 1 - bad_drop_rate])
    return float(np.sum(states @ arrives @ np.linalg.matrix_power(moves @ arrives, packets - 1)))


def burst_chain(
    drop_rate: float, mean_burst: float, good_drop_rate: float = 0.0, bad_drop_rate: float = 1.0
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Returns the Markov chain of one link.

    Returns:
        How much of the time it is good and bad, `[2]`; and the probabilities of its moves,
        `[2, 2]`, from the state of the row.

    Raises:
        ValueError: as of `GilbertElliott`.
    """
    # Says what is wrong with the numbers, if they are of no link.
    GilbertElliott(
        drop_rate, mean_burst, good_drop_rate=good_drop_rate, bad_drop_rate=bad_drop_rate
    )
    share = (drop_rate - good_drop_rate) / (bad_drop_rate - good_drop_rate)
    odds = share / (1 - share) if share < 1 else 0.0
    fails, recovers = (min(1, odds / mean_burst), 1 / mean_burst) if share < 1 else (1, 0)
    moves = np.array([[1 - fails, fails], [recovers, 1 - recovers]])
    return np.array([1 - share, share]), moves
