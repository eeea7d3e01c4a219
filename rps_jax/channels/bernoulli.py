"""Independent drops at one rate: the network of the paper.

Yu et al., "Distributed Learning over Unreliable Networks", ICML 2019, section 3: every message of
the reduce-scatter and of the all-gather is dropped independently with probability p.
"""

import dataclasses

import jax
import jax.numpy as jnp

from rps_jax import keys
from rps_jax.channels.channel import REDUCE_SCATTER, sample_links
from rps_jax.channels.fields import packet_shape, register_channel
from rps_jax.checks import check_number, check_packets, check_scalar
from rps_jax.delivery import Delivery


@register_channel
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
    packets: int | None = dataclasses.field(default=None, metadata={"static": True})

    def __post_init__(self) -> None:
        check_number("drop_rate", self.drop_rate)
        if self.all_gather_drop_rate is not None:
            check_number("all_gather_drop_rate", self.all_gather_drop_rate)
        check_packets(self.packets)

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
            check_scalar(name, rate)
        shape = packet_shape(self.packets)

        def arrives(
            phase: int, link_key: jax.Array, source: jax.Array, destination: jax.Array
        ) -> jax.Array:
            del source, destination
            rate = self.drop_rate if phase == REDUCE_SCATTER else gather_rate
            # Uniform draws lie in [0, 1), so that rate 0 drops nothing and rate 1 everything.
            return keys.uniform(link_key, shape) >= jnp.asarray(rate, jnp.float32)

        return sample_links(arrives, key, worker, num_workers), state
