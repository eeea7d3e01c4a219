"""A channel with a memory, for tests: none of the library has one yet."""

import dataclasses

import jax
import jax.numpy as jnp

import rps_jax as rps


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Bursts:
    """A channel with a memory: links go bad and good again, from a stationary start.

    The state is whether an exchange has been drawn, and which links are bad.
    """

    fail: float = 0.2
    recover: float = 0.3

    def init(self, num_workers):
        return jnp.bool_(False), rps.Delivery(*[jnp.zeros(num_workers, bool)] * 3)

    def sample(self, state, key, worker, num_workers):
        begun, bad = state

        def draw(purpose, probability):
            def happens(phase, link_key, source, destination):
                return jax.random.uniform(link_key) < probability

            of_purpose = jax.random.fold_in(key, purpose)
            return rps.sample_links(happens, of_purpose, worker, num_workers)

        start = draw(0, self.fail / (self.fail + self.recover))
        myself = jnp.arange(num_workers) == worker

        def move(bad, start, fails, recovers):
            bad = jnp.where(begun, jnp.where(bad, ~recovers, fails), start)
            return bad & ~myself

        bad = jax.tree.map(move, bad, start, draw(1, self.fail), draw(2, self.recover))
        return jax.tree.map(jnp.logical_not, bad), (jnp.bool_(True), bad)
