"""Monte Carlo: what real exchanges over any channel do to the workers' models."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rps_jax.averaging import average_models
from rps_jax.channels import Channel
from rps_jax.draw import draw_exchange


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
