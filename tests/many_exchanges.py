"""What arrives in many runs of a channel, for the statistics that it promises."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import rps_jax as rps


def drops_of(channel, num_workers, steps, runs=1, seed=0):
    """Returns what is dropped, bool `[runs, steps, phase, source, destination, packets]`."""
    return ~np.asarray(_arrived(channel, num_workers, steps, runs, seed))


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _arrived(channel, num_workers, steps, runs, seed):
    def run(number):
        key = jax.random.fold_in(jax.random.key(seed), number)

        def one_worker(_):
            def step(state, at):
                delivery, state = rps.draw_exchange(channel, state, key, at, "workers")
                masks = (delivery.received, delivery.gathered)
                return state, jnp.stack([mask.reshape(num_workers, -1) for mask in masks])

            return jax.lax.scan(step, channel.init(num_workers), jnp.arange(steps))[1]

        # [destination, step, phase, source, packets]
        seen = jax.vmap(one_worker, axis_name="workers", axis_size=num_workers)(
            jnp.zeros(num_workers)
        )
        return jnp.moveaxis(seen, 0, 3)

    return jax.vmap(run)(jnp.arange(runs))


def between_workers(drops):
    """Returns the same of the links between different workers, `[..., links, packets]`."""
    apart = ~np.eye(drops.shape[-2], dtype=bool)
    return drops[..., apart, :]
