"""Independent drops at one rate: the network of the paper.

Yu et al., "Distributed Learning over Unreliable Networks", ICML 2019, section 3: every message of
the reduce-scatter and of the all-gather is dropped independently with probability p.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rps_jax import keys
from rps_jax.channels.channel import REDUCE_SCATTER, sample_links
from rps_jax.delivery import Delivery


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True)
class Bernoulli:
    """Every message is dropped independently, as in the paper.

    Attributes:
        drop_rate: probability in [0, 1] that a message is dropped. May be traced.
        all_gather_drop_rate: the same for the all-gather, where it differs from the reduce-scatter.
        packets: how many packets a message is cut into, each dropped by itself; None drops messages
            whole.

    Raises:
        ValueError: a rate outside [0, 1], or fewer than one packet.

    >>> channel = Bernoulli(drop_rate=0.1)
    >>> delivery, state = channel.sample((), jax.random.key(0), worker=3, num_workers=16)
    >>> delivery.gathered.shape
    (16,)
    """

    drop_rate: jax.Array | float
    all_gather_drop_rate: jax.Array | float | None = None
    packets: int | None = None

    def __post_init__(self) -> None:
        _check_rate("drop_rate", self.drop_rate)
        if self.all_gather_drop_rate is not None:
            _check_rate("all_gather_drop_rate", self.all_gather_drop_rate)
        whole = isinstance(self.packets, int | np.integer) and not isinstance(self.packets, bool)
        if self.packets is not None and not (whole and self.packets >= 1):
            raise ValueError(f"packets={self.packets!r}: expected None or an integer of at least 1")

    def tree_flatten(self) -> tuple[tuple[Any, Any], int | None]:
        """Makes it a pytree of its rates; the number of packets is static."""
        return (self.drop_rate, self.all_gather_drop_rate), self.packets

    @classmethod
    def tree_unflatten(cls, packets: int | None, rates: tuple[Any, Any]) -> "Bernoulli":
        """Restores it unchecked: a pytree of its shape may hold gradients, or no numbers at all."""
        channel = object.__new__(cls)
        names = (field.name for field in dataclasses.fields(cls))
        for name, value in zip(names, (*rates, packets), strict=True):
            object.__setattr__(channel, name, value)
        return channel

    def init(self, num_workers: int) -> tuple[()]:
        """Returns `()`: past drops say nothing of the next."""
        del num_workers
        return ()

    def sample(
        self, state: tuple[()], key: jax.Array, worker: jax.Array | int, num_workers: int
    ) -> tuple[Delivery, tuple[()]]:
        """Draws one exchange as `worker` sees it; see `Channel.sample`."""
        gather_rate = (
            self.drop_rate if self.all_gather_drop_rate is None else self.all_gather_drop_rate
        )
        for name, rate in (("drop_rate", self.drop_rate), ("all_gather_drop_rate", gather_rate)):
            if jnp.ndim(rate):
                raise ValueError(f"{name} has shape {jnp.shape(rate)}: expected a scalar")
        shape = () if self.packets is None else (self.packets,)

        def arrives(
            phase: int, link_key: jax.Array, source: jax.Array, destination: jax.Array
        ) -> jax.Array:
            del source, destination
            rate = self.drop_rate if phase == REDUCE_SCATTER else gather_rate
            # Uniform draws lie in [0, 1), so that rate 0 drops nothing and rate 1 everything.
            return keys.uniform(link_key, shape) >= jnp.asarray(rate, jnp.float32)

        return sample_links(arrives, key, worker, num_workers), state


def _check_rate(name: str, rate: Any) -> None:
    """Raises if a number that is known already is no probability; traced numbers pass."""
    if isinstance(rate, jax.core.Tracer):
        return
    value = np.asarray(rate)
    shown = repr(rate) if isinstance(rate, str) else rate
    real = jnp.issubdtype(value.dtype, jnp.floating) or jnp.issubdtype(value.dtype, jnp.integer)
    if not (real and ((value >= 0) & (value <= 1)).all()):
        raise ValueError(f"{name}={shown}: expected a probability in [0, 1]")
