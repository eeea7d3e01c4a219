"""Exact theory of one exchange under independent drops, for every policy that has no memory.

Notation as in `rps_jax.theory.exchange`. Given the server s, let g_i tell whether it reaches worker
i, R = sum_i g_i, and let u be the weights with which it averages, so that column i of W is u where
g_i = 1; elsewhere it is e_i (the worker's own value) or 0. With U = sum_j u_j,

    u_j = a_j / K                                "received":    |u|^2 = 1/K      U = 1
    u_j = a_j / n                                "zero-filled": |u|^2 = K / n^2  U = K / n
    u_j = a_j / (n (1 - r)), of its own 1 / n    "unbiased", for a drop rate of r

Whoever the server is, all workers are alike, so that E[W], E[W W^T] and E[W A W^T] are all of the
form x I + y A, and two numbers of each are enough: its trace, and 1^T (.) 1:

    E[W W^T]     trace  E[R] E|u|^2 + k                 sum  E[R] E[U^2] + k
    E[W A W^T]   trace  (E[R^2] E|u|^2 + 2 c + k) / n   sum  E[(R U + n - R)^2] / n
    E[W]         trace  sum_i E[u_i] E[g_i] + k         sum  E[R] E[U] + k

with k = n - E[R] and c = sum_i E[u_i] E[R (1 - g_i)] where a worker keeps its own, and k = c = 0
and R U in the place of R U + n - R where it goes on with zero. Of deviations from the mean, x
counts; of what all workers have in common, x + y.
"""

from typing import NamedTuple

from rps_jax.servers import Server, ServerName
from rps_jax.theory.exchange import gather_rate_of, mean_inverse


class Moments(NamedTuple):
    """What an exchange does on average: to what workers differ by, and to what they share.

    Squares are of the whole tree. Those of the first three are in units of the squared deviations
    sum_i ||v_i - mean v||^2 before the exchange, those of the others in units of n ||mean v||^2.

    Attributes:
        contraction: the squared deviations after it.
        drift: n times the squared move of the mean.
        kept: the share of its deviation that a worker keeps in expectation.
        equal_spread: the squared deviations to which it brings equal values.
        equal_drift: n times the squared move of the mean of equal values.
        equal_kept: the share of equal values that is kept in expectation; 1 without bias.
    """

    contraction: float
    drift: float
    kept: float
    equal_spread: float
    equal_drift: float
    equal_kept: float


def moments(
    num_workers: int,
    drop_rate: float,
    all_gather_drop_rate: float | None = None,
    *,
    server: ServerName = "received",
    server_drop_rate: float | None = None,
    on_miss: str = "own",
) -> Moments:
    """Returns what one exchange does under `Bernoulli` drops, exactly, by policy.

    Args:
        num_workers: n, at least 1.
        drop_rate: p in [0, 1], of the reduce-scatter and, by default, of the all-gather.
        all_gather_drop_rate: the rate of the all-gather, where it differs.
        server: "received", "zero-filled" or "unbiased"; see `rps_jax.servers`.
        server_drop_rate: r in [0, 1), of "unbiased".
        on_miss: what a worker goes on with that gets no average: its "own" value, or "zero".

    Raises:
        ValueError: a number out of range, or a policy with a memory, whose exchanges depend on
            those before: `measure` has these.

    >>> rps = moments(16, 0.1)
    >>> zero_filled = moments(16, 0.1, server="zero-filled")
    >>> print(f"{rps.equal_kept:.3f} {zero_filled.equal_kept:.3f}")
    1.000 0.915
    """
    gather_rate = gather_rate_of(num_workers, drop_rate, all_gather_drop_rate)
    Server(server, server_drop_rate)
    if server == "stale" or on_miss not in ("own", "zero"):
        raise ValueError(
            f"server={server!r}, on_miss={on_miss!r}: expected policies without memory"
        )
    if server_drop_rate is not None and not 0 <= server_drop_rate < 1:
        raise ValueError(f"server_drop_rate={server_drop_rate}: expected a number in [0, 1)")
    n, m = num_workers, num_workers - 1
    u_squared, total, total_squared, u_server = _weights(n, drop_rate, server, server_drop_rate)
    r = 1 + m * (1 - gather_rate)
    r_squared = r**2 + m * gather_rate * (1 - gather_rate)

    spread = r * u_squared, r * total_squared
    mixed = r_squared * u_squared / n, r_squared * total_squared / n
    # The server reaches itself for certain, any other with probability 1 - p'.
    first = u_server + (total - u_server) * (1 - gather_rate), r * total
    if on_miss == "own":
        own = n - r
        # sum_i E[u_i] E[R (1 - g_i)]: the server never misses, the others do so alike.
        missed = (total - u_server) * gather_rate * (1 + (m - 1) * (1 - gather_rate))
        both = n * r - r_squared  # E[R (n - R)]
        neither = n**2 - 2 * n * r + r_squared  # E[(n - R)^2]
        spread = spread[0] + own, spread[1] + own
        mixed = (
            mixed[0] + (2 * missed + own) / n,
            mixed[1] + (2 * total * both + neither) / n,
        )
        first = first[0] + own, first[1] + own
    (x_1, all_1), (x_2, all_2), (kept, equal_kept) = (
        _of_form(n, *each) for each in (spread, mixed, first)
    )
    return Moments(
        contraction=x_1 - x_2,
        drift=x_2,
        kept=kept,
        equal_spread=all_1 - all_2,
        equal_drift=all_2 - 2 * equal_kept + 1,
        equal_kept=equal_kept,
    )


def _of_form(n: int, trace: float, total: float) -> tuple[float, float]:
    """Returns x and x + y of a matrix x I + y A, by its trace and the sum of its elements."""
    return ((trace - total / n) / (n - 1) if n > 1 else 0.0), total / n


def _weights(
    n: int, drop_rate: float, server: ServerName, server_drop_rate: float | None
) -> tuple[float, float, float, float]:
    """Returns E|u|^2, E[U], E[U^2], and E[u_s] of the server itself."""
    m, q = n - 1, 1 - drop_rate
    if server == "received":
        inverse_k = mean_inverse(n, drop_rate)
        return inverse_k, 1.0, 1.0, inverse_k
    weight = 1.0 if server_drop_rate is None else 1 / (1 - server_drop_rate)
    total = 1 + m * q * weight
    total_squared = total**2 + m * q * drop_rate * weight**2
    return (1 + m * q * weight**2) / n**2, total / n, total_squared / n**2, 1 / n
