"""A network that drops nothing."""

import dataclasses

import jax
import jax.numpy as jnp

from rps_jax.delivery import Delivery


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Reliable:
    """Every message arrives."""

    def init(self, num_workers: int) -> tuple[()]:
        """Returns `()`."""
        del num_workers
        return ()

    def sample(
        self, state: tuple[()], key: jax.Array, worker: jax.Array | int, num_workers: int
    ) -> tuple[Delivery, tuple[()]]:
        """Returns a delivery in which everything arrives; see `Channel.sample`."""
        del key, worker
        everything = jnp.ones(num_workers, bool)
        return Delivery(everything, everything, everything), state
