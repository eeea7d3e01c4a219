"""Exact theory of one exchange where every link has a drop rate of its own.

Notation as in `rps_jax.theory.exchange`. Let a block's server be given, a_i tell whether worker i
reaches it and g_i whether it reaches worker i, both 1 of the server itself. With u_i = a_i / K,

    W = u g^T + diag(1 - g)

    tr E[W W^T]   = E[R] E[1/K] + n - E[R]
    tr E[W A W^T] = (E[R^2] E[1/K] + 2 sum_i E[u_i] E[R (1 - g_i)] + n - E[R]) / n

and, of independent arrivals, E[1/K] and E[u_i] are integrals over [0, 1] of polynomials in t:

    E[1/K] = int prod_{j != server} E[t^a_j]      E[u_i] = E[a_i] int t prod_{j != server, i} ...

Links that differ single out directions, so that the contraction depends on where the workers'
models differ. The alphas here are averages over deviations that are equally large in all
directions, as of workers whose models differ by noise; with equal rates they are those of `alphas`.
"""

import numpy as np
import numpy.typing as npt

from rps_jax.theory.exchange import Alphas


def link_alphas(
    drop_rates: npt.ArrayLike, all_gather_drop_rates: npt.ArrayLike | None = None
) -> Alphas:
    """Returns alpha_1 and alpha_2 of one exchange whose links differ, exactly.

    Args:
        drop_rates: probabilities by source and destination, `[num_workers, num_workers]`, of the
            reduce-scatter and, by default, of the all-gather. The diagonal is not looked at.
        all_gather_drop_rates: those of the all-gather, where they differ.

    Returns:
        The alphas, averaged over the servers and over the directions of the deviations:
        alpha_1 - alpha_2 is the contraction, alpha_2 the drift.

    Raises:
        ValueError: a matrix that is not square, two of different shapes, or a rate outside [0, 1].

    >>> one_bad_worker = np.zeros((16, 16))
    >>> one_bad_worker[3], one_bad_worker[:, 3] = 0.5, 0.5
    >>> alpha_1, alpha_2 = link_alphas(one_bad_worker)
    >>> bool(alpha_2 < alpha_1 < 0.1)
    True
    """
    scatter = np.asarray(drop_rates, float)
    gather = scatter if all_gather_drop_rates is None else np.asarray(all_gather_drop_rates, float)
    n = len(scatter) if scatter.ndim else 0
    for name, rates in (("drop_rates", scatter), ("all_gather_drop_rates", gather)):
        if n < 1 or rates.shape != (n, n):
            raise ValueError(f"{name} has shape {rates.shape}: expected ({n}, {n}), of workers")
        if not ((rates >= 0) & (rates <= 1)).all():
            raise ValueError(f"{name}: expected probabilities in [0, 1]")
    if n == 1:
        return Alphas(0.0, 0.0)
    traces = [_traces(1 - scatter[:, server], 1 - gather[server], server) for server in range(n)]
    spread, mixed = (np.mean(traces, axis=0) - 1) / (n - 1)
    return Alphas(float(spread), float(mixed))


def _traces(
    arrives: npt.NDArray[np.float64], gathered: npt.NDArray[np.float64], server: int
) -> tuple[float, float]:
    """Returns the traces of E[W W^T] and E[W A W^T], given the server.

    Args:
        arrives: `[n]`: the probability that a worker reaches the server.
        gathered: `[n]`: the probability that the server reaches a worker.
        server: its number.
    """
    n = len(arrives)
    arrives, gathered = arrives.copy(), gathered.copy()
    arrives[server] = gathered[server] = 1
    nodes, weights = np.polynomial.legendre.leggauss(n // 2 + 1)  # exact to degree n + 1
    t, weights = (nodes + 1) / 2, weights / 2
    others = np.arange(n) != server
    factors = 1 - arrives[:, None] * (1 - t)  # E[t^a], by worker and node; positive, as t > 0
    product = factors[others].prod(0)
    inverse_k = float(weights @ product)
    u = arrives * ((t * product / factors) @ weights)
    u[server] = inverse_k
    r = gathered.sum()
    r_squared = r**2 + (gathered * (1 - gathered)).sum()
    missing = r - gathered * (1 + r - gathered)  # E[R (1 - g)]
    spread = r * inverse_k + n - r
    mixed = (r_squared * inverse_k + 2 * u @ missing + n - r) / n
    return float(spread), float(mixed)
