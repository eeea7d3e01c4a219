"""Exact theory of bursts over exchanges: links that are Markov chains from exchange to exchange.

A link is good or bad; a bad one drops its message. Let sigma be the states of all links that the
exchanges of a block use, P(sigma, sigma') their transitions, stationary at first, and W(sigma) the
mixing matrix. Backwards from the last of k exchanges,

    Q_k(sigma) = W(sigma) (I - A) W(sigma)^T
    Q_j(sigma) = W(sigma) sum_sigma' P(sigma, sigma') Q_{j+1}(sigma') W(sigma)^T

and deviations that are equally large in all directions are contracted to tr E[Q_1] / (n - 1). The
links of one server are 2 (n - 1), so that the states are 4^(n - 1), of all servers' links
4^(n (n - 1)). Nothing smaller is exact: what a burst does depends on which links it hits together.

Of many workers, an average misses little, and what remains of deviations is what a worker has
missed in every exchange: `burst_limits`.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rps_jax.draw import Assignment, check_assignment

_MOST_LINKS = 14


def burst_contractions(
    num_workers: int,
    drop_rate: float,
    mean_burst: float,
    exchanges: int,
    assignment: Assignment = "fixed",
) -> list[float]:
    """Returns what so many exchanges in a row leave of the squared deviations, exactly.

    Args:
        num_workers: n, at least 2, and few: at most 8 where servers are fixed, 3 where they are
            drawn at random.
        drop_rate: p in [0, 1), of every link, in the long run.
        mean_burst: exchanges in a row that a link is bad for, in the mean; at least 1 and
            p / (1 - p).
        exchanges: how many, at least 1.
        assignment: "fixed" or "random", as of `draw_exchange`.

    Returns:
        The contraction of 1, 2, ... exchanges. Independent drops have powers of the first, where
        servers are drawn at random; one that is fixed never deviates, and others the more.

    Raises:
        ValueError: a number out of range, or too many workers.

    >>> [round(x, 4) for x in burst_contractions(4, 0.1, mean_burst=8, exchanges=3)]
    [0.0607, 0.0354, 0.0226]
    """
    check_assignment(assignment)
    fails, recovers = _chain(drop_rate, mean_burst)
    n = num_workers
    fixed = assignment == "fixed"
    links = 2 * (n - 1) * (1 if fixed else n)
    if n < 2 or links > _MOST_LINKS:
        raise ValueError(
            f"num_workers={n}: expected 2 to {8 if fixed else 3}, with {assignment} servers"
        )
    if exchanges < 1:
        raise ValueError(f"exchanges={exchanges}: expected at least 1")
    chain = np.array([[1 - fails, fails], [recovers, 1 - recovers]])
    stationary: npt.NDArray[Any] = np.ones(1)
    for _ in range(links):
        stationary = np.kron(stationary, [1 - drop_rate, drop_rate])
    servers = range(1 if fixed else n)
    mixing = [_mixing_matrices(n, server, links) for server in servers]
    # Q of the state of the last exchange; then that of one before, and so on.
    after = np.broadcast_to(np.eye(n) - 1 / n, (2**links, n, n))
    left = []
    for _ in range(exchanges):
        after = np.mean([w @ after @ w.swapaxes(1, 2) for w in mixing], axis=0)
        mean = np.tensordot(stationary, after, 1)
        left.append(float((np.trace(mean) - mean.sum() / n) / (n - 1)))
        after = _before(after, chain, links)
    return left


def burst_limits(
    drop_rate: float, mean_burst: float, exchanges: int, assignment: Assignment = "fixed"
) -> list[float]:
    """Returns what `burst_contractions` tends to for many workers.

    A worker keeps what it has missed in all exchanges. Of fixed servers that is one burst on one
    link: p (1 - 1 / mean_burst)^(k - 1). Of servers drawn at random it is k links: p^k.

    Arguments and errors are those of `burst_contractions`.

    >>> [round(x, 4) for x in burst_limits(0.1, mean_burst=8, exchanges=3)]
    [0.1, 0.0875, 0.0766]
    """
    check_assignment(assignment)
    _, recovers = _chain(drop_rate, mean_burst)
    again = 1 - recovers if assignment == "fixed" else drop_rate
    return [drop_rate * again**more for more in range(exchanges)]


def _chain(drop_rate: float, mean_burst: float) -> tuple[float, float]:
    """Returns the probabilities that a good link turns bad, and a bad one good."""
    if not 0 <= drop_rate < 1:
        raise ValueError(f"drop_rate={drop_rate}: expected a probability in [0, 1)")
    odds = drop_rate / (1 - drop_rate)
    if mean_burst < max(1, odds):
        raise ValueError(
            f"mean_burst={mean_burst}: expected at least 1 and drop_rate / (1 - drop_rate)"
        )
    return odds / mean_burst, 1 / mean_burst


def _mixing_matrices(n: int, server: int, links: int) -> npt.NDArray[np.float64]:
    """Returns W of every state of the links, `[2^links, n, n]`; the first link's is the high bit.

    Links go server by server: those of its reduce-scatter, then those of its all-gather.
    """
    states = np.array(list(itertools.product((False, True), repeat=links)))
    first = 2 * (n - 1) * server if links > 2 * (n - 1) else 0
    bad = states[:, first : first + 2 * (n - 1)].reshape(-1, 2, n - 1)
    arrived, gathered = np.insert(~bad, server, True, axis=2).swapaxes(0, 1)
    average = arrived / arrived.sum(1, keepdims=True)
    return np.where(gathered[:, None, :], average[:, :, None], np.eye(n))


def _before(
    values: npt.NDArray[np.float64], chain: npt.NDArray[np.float64], links: int
) -> npt.NDArray[np.float64]:
    """Returns the expectations of values `[2^links, ...]` of states, one exchange before."""
    shape: Sequence[int] = values.shape
    values = values.reshape(*[2] * links, -1)
    for link in range(links):
        values = np.moveaxis(np.tensordot(chain, values, (1, link)), 0, link)
    return values.reshape(shape)
