"""Exact theory of bursts over exchanges: links that are Markov chains from exchange to exchange.

A link is good or bad, and drops its message at the rate of its state. Let sigma be the states of
all links that the exchanges of a block use, P(sigma, sigma') their transitions, stationary at
first, and W the mixing matrix, random given sigma. Backwards from the last of k exchanges,

    Q_k(sigma) = E[W (I - A) W^T | sigma]
    Q_j(sigma) = E[W sum_sigma' P(sigma, sigma') Q_{j+1}(sigma') W^T | sigma]

and deviations that are equally large in all directions are contracted to tr E[Q_1] / (n - 1). The
links of one server are 2 (n - 1), so that the states are 4^(n - 1), of all servers' links
4^(n (n - 1)). Nothing smaller is exact: what a burst does depends on which links it hits together.

Of many workers, an average misses little, and what remains of deviations is what a worker has
missed in every exchange: `burst_limits`.
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rps_jax.draw import Assignment, check_assignment
from rps_jax.theory.bursts import burst_chain

_MOST_LINKS = 14


def burst_contractions(
    num_workers: int,
    drop_rate: float,
    mean_burst: float,
    exchanges: int,
    assignment: Assignment = "fixed",
    good_drop_rate: float = 0.0,
    bad_drop_rate: float = 1.0,
) -> list[float]:
    """Returns what so many exchanges in a row leave of the squared deviations, exactly.

    Args:
        num_workers: n, at least 2, and few: at most 8 where servers are fixed, 3 where they are
            drawn at random. `measure` estimates what more do.
        drop_rate: p in [0, 1], of every link, in the long run.
        mean_burst: exchanges in a row that a link is bad for, in the mean; at least 1 and
            s / (1 - s), for s the share of time that it is bad.
        exchanges: how many, at least 1.
        assignment: "fixed" or "random", as of `draw_exchange`.
        good_drop_rate: of messages while a link is good, as of `GilbertElliott`; at most p.
        bad_drop_rate: the same while it is bad; at least p.

    Returns:
        The contraction of 1, 2, ... exchanges. Independent drops have powers of the first, where
        servers are drawn at random; one that is fixed never deviates, and others the more.

    Raises:
        ValueError: a number out of range, or too many workers.

    >>> [round(x, 4) for x in burst_contractions(4, 0.1, mean_burst=8, exchanges=3)]
    [0.0607, 0.0354, 0.0226]
    """
    check_assignment(assignment)
    of_link, moves = burst_chain(drop_rate, mean_burst, good_drop_rate, bad_drop_rate)
    n = num_workers
    fixed = assignment == "fixed"
    links = 2 * (n - 1) * (1 if fixed else n)
    if n < 2 or links > _MOST_LINKS:
        raise ValueError(
            f"num_workers={n}: expected 2 to {8 if fixed else 3}, with {assignment} servers; "
            "theory.measure estimates what more do"
        )
    _check_exchanges(exchanges)
    stationary: npt.NDArray[Any] = np.ones(1)
    for _ in range(links):
        stationary = np.kron(stationary, of_link)
    drops = np.array([good_drop_rate, bad_drop_rate])
    mixing = [_Mixing.of(n, server, links, drops) for server in range(1 if fixed else n)]
    # Q of the state of the last exchange; then that of one before, and so on.
    after = np.broadcast_to(np.eye(n) - 1 / n, (2**links, n, n))
    left = []
    for _ in range(exchanges):
        after = np.mean([each(after) for each in mixing], axis=0)
        mean = np.tensordot(stationary, after, 1)
        left.append(float((np.trace(mean) - mean.sum() / n) / (n - 1)))
        after = _expect(after, moves, links)
    return left


def burst_limits(
    drop_rate: float,
    mean_burst: float,
    exchanges: int,
    assignment: Assignment = "fixed",
    good_drop_rate: float = 0.0,
    bad_drop_rate: float = 1.0,
) -> list[float]:
    """Returns what `burst_contractions` tends to for many workers.

    A worker keeps what it has missed in all exchanges. Of fixed servers that is k messages in a row
    on one link; of bursts that drop all, p (1 - 1 / mean_burst)^(k - 1). Of servers drawn at random
    it is k links: p^k.

    Arguments and errors are those of `burst_contractions`.

    >>> [round(x, 4) for x in burst_limits(0.1, mean_burst=8, exchanges=3)]
    [0.1, 0.0875, 0.0766]
    """
    check_assignment(assignment)
    states, moves = burst_chain(drop_rate, mean_burst, good_drop_rate, bad_drop_rate)
    _check_exchanges(exchanges)
    if assignment == "random":
        return [drop_rate**count for count in range(1, exchanges + 1)]
    drops = np.diag([good_drop_rate, bad_drop_rate])
    again = (np.linalg.matrix_power(moves @ drops, more) for more in range(exchanges))
    return [float(np.sum(states @ drops @ each)) for each in again]


def _check_exchanges(exchanges: int) -> None:
    """Raises `ValueError` for less than one."""
    if exchanges < 1:
        raise ValueError(f"exchanges={exchanges}: expected at least 1")


class _Mixing(NamedTuple):
    """What is known of W given the states of the links, the first of which is the high bit.

    Column i of W is the server's average a where the average reaches worker i, and e_i elsewhere.

    Attributes:
        average: E[a], `[2^links, n]`.
        squared: E[a a^T], `[2^links, n, n]`.
        reached: the probability that a worker is, `[2^links, n]`; of the server itself 1.
    """

    average: npt.NDArray[np.float64]
    squared: npt.NDArray[np.float64]
    reached: npt.NDArray[np.float64]

    @classmethod
    def of(cls, n: int, server: int, links: int, drops: npt.NDArray[np.float64]) -> "_Mixing":
        """Returns that of a server.

        Links go server by server: those of its reduce-scatter, then those of its all-gather.

        Args:
            n: how many workers there are.
            server: which of them it is.
            links: how many there are in all.
            drops: the rates in the good and in the bad state, `[2]`.
        """
        m = n - 1
        arrived = np.array(list(itertools.product((True, False), repeat=m)))
        arrived = np.insert(arrived, server, True, axis=1)
        average = arrived / arrived.sum(1, keepdims=True)
        # From what happens to each link to what may happen in each of its states.
        given = np.stack([1 - drops, drops], axis=1)
        expected = _expect(average, given, m)
        squared = _expect(average[:, :, None] * average[:, None, :], given, m)

        states = np.arange(2**links)
        first = 2 * m * server if links > 2 * m else 0
        scatter = states >> (links - first - m) & 2**m - 1
        gather = [states >> (links - first - m - 1 - link) & 1 for link in range(m)]
        reached = np.insert(1 - drops[np.stack(gather, axis=1)], server, 1.0, axis=1)
        return cls(expected[scatter], squared[scatter], reached)

    def __call__(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Returns E[W V W^T] given the states, of symmetric V `[2^links, n, n]`."""
        missed = 1 - self.reached
        of_reached = np.einsum("sij,sj->si", values, self.reached)
        # Sums over pairs of columns, each reached or not; of a column with itself it is the same.
        twice = np.einsum("sii->si", values) * self.reached * missed
        both = np.sum(self.reached * of_reached + twice, axis=1)
        one = self.average[:, :, None] * (missed * of_reached - twice)[:, None, :]
        neither = missed[:, :, None] * values * missed[:, None, :]
        neither += twice[:, :, None] * np.eye(values.shape[1])
        return both[:, None, None] * self.squared + one + one.swapaxes(1, 2) + neither


def _expect(
    values: npt.NDArray[np.float64], given: npt.NDArray[np.float64], links: int
) -> npt.NDArray[np.float64]:
    """Returns the expectations of values of what happens to links, given their states.

    Args:
        values: `[2^links, ...]`, the first link the high bit.
        given: of one link, `[2, 2]`: what happens to it (a column) in each state (a row).
        links: how many.
    """
    shape: Sequence[int] = values.shape
    values = values.reshape(*[2] * links, -1)
    for link in range(links):
        values = np.moveaxis(np.tensordot(given, values, (1, link)), 0, link)
    return values.reshape(shape)
