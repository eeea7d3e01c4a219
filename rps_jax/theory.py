"""Exact theory of one exchange under independent drops, and Monte Carlo for any channel.

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

import jax
import jax.numpy as jnp

from rps_jax.averaging import average_models
from rps_jax.channels import Channel
from rps_jax.draw import draw_exchange


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
    gather_rate = drop_rate if all_gather_drop_rate is None else all_gather_drop_rate
    if num_workers < 1:
        raise ValueError(f"num_workers={num_workers}: expected at least 1")
    for name, rate in (("drop_rate", drop_rate), ("all_gather_drop_rate", gather_rate)):
        if not 0 <= rate <= 1:
            raise ValueError(f"{name}={rate}: expected a probability in [0, 1]")
    if num_workers == 1:
        return Alphas(0.0, 0.0)
    n, m = num_workers, num_workers - 1
    # (1 - p^n) / (n (1 - p)) as a geometric sum, which holds at p = 1 too.
    inverse_k = sum(drop_rate**k for k in range(n)) / n
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


class Measured(NamedTuple):
    """Monte Carlo estimates, with the standard error of each.

    Attributes:
        contraction: mean of the factor on the squared consensus distance.
        contraction_error: its standard error.
        drift: mean squared move of the mean, in units of the squared consensus distance.
        drift_error: its standard error.
    """

    contraction: float
    contraction_error: float
    drift: float
    drift_error: float


def measure(
    channel: Channel, num_workers: int, num_exchanges: int = 1000, seed: int = 0
) -> Measured:
    """Measures contraction and drift of real exchanges, for any channel.

    Each exchange starts from new, normally distributed models of 16 coordinates a block; a channel
    with state goes on from exchange to exchange.

    Args:
        channel: where drops come from.
        num_workers: at least 2: a single worker has no consensus distance.
        num_exchanges: how many exchanges to average over.
        seed: of the drops and the models.

    Raises:
        ValueError: fewer than two workers.
    """
    if num_workers < 2:
        raise ValueError(f"num_workers={num_workers}: expected at least 2")
    drop_key, model_key = jax.random.split(jax.random.key(seed))
    size = 16 * num_workers

    def spread(models: jax.Array) -> jax.Array:
        return jnp.sum((models - models.mean(0, keepdims=True)) ** 2)

    def exchange(state: jax.Array, step: jax.Array) -> tuple[jax.Array, jax.Array]:
        def one_worker(params: jax.Array, state: jax.Array) -> tuple[jax.Array, jax.Array]:
            delivery, state = draw_exchange(channel, state, drop_key, step, "workers")
            return average_models(params, delivery, "workers"), state

        before = jax.random.normal(jax.random.fold_in(model_key, step), (num_workers, size))
        after, state = jax.vmap(one_worker, axis_name="workers")(before, state)
        moved = num_workers * jnp.sum((after.mean(0) - before.mean(0)) ** 2)
        return state, jnp.stack([spread(after), moved]) / spread(before)

    one = channel.init(num_workers)
    state = jax.tree.map(lambda x: jnp.broadcast_to(x, (num_workers, *jnp.shape(x))), one)
    _, ratios = jax.lax.scan(exchange, state, jnp.arange(num_exchanges))
    means = ratios.mean(0)
    errors = ratios.std(0, ddof=1) / num_exchanges**0.5
    return Measured(
        contraction=float(means[0]),
        contraction_error=float(errors[0]),
        drift=float(means[1]),
        drift_error=float(errors[1]),
    )
