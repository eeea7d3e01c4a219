"""Where loss comes from: a channel says which messages of one exchange arrive.

Yu et al., "Distributed Learning over Unreliable Networks", ICML 2019, section 3: every message of
the reduce-scatter and of the all-gather is dropped independently with probability p.

Both ends of a message must agree on its fate without talking to each other. So every draw comes
from a key of its own link, `(key, phase, source, destination)`, and each worker makes only the
draws of the links that touch it: O(num_workers), the same wherever the worker is placed.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from rps_jax.keys import portable

REDUCE_SCATTER, ALL_GATHER = 0, 1
"""The phases of an exchange, as `arrives` of `sample_links` is given them."""


class Delivery(NamedTuple):
    """One worker's view of one exchange: what arrived.

    Each field is a boolean array `[num_workers]`, or `[num_workers, packets]` where a message is
    cut into packets that are lost one by one. A worker's own messages always arrive.

    Attributes:
        sent: reduce-scatter; my block for server j reached j.
        received: reduce-scatter; worker i's block reached me, its server. The other end of
            `sent`: of all workers, sent[i][j] == received[j][i]. Averages are formed by `sent`.
        gathered: all-gather; server j's average reached me.
    """

    sent: jax.Array
    received: jax.Array
    gathered: jax.Array


class Channel(Protocol):
    """A source of deliveries. Implementations are pytrees, so that jit may trace their numbers."""

    def init(self, num_workers: int) -> Any:
        """Returns one worker's channel state before the first exchange: `()` if memoryless."""
        ...

    def sample(
        self, state: Any, key: jax.Array, worker: jax.Array | int, num_workers: int
    ) -> tuple[Delivery, Any]:
        """Draws one exchange as `worker` sees it.

        Args:
            state: this worker's channel state.
            key: the key of this exchange, the same on every worker.
            worker: int32 scalar, this worker's index; may be traced.
            num_workers: how many workers take part.

        Returns:
            The delivery, and the state for the next exchange.
        """
        ...


def sample_links(
    arrives: Callable[[int, jax.Array, jax.Array, jax.Array], jax.Array],
    key: jax.Array,
    worker: jax.Array | int,
    num_workers: int,
) -> Delivery:
    """Asks `arrives` about every link that touches `worker`; the body of a memoryless channel.

    Args:
        arrives: `(phase, link_key, source, destination) -> bool`, a scalar or `[packets]`. It is
            asked at both ends of a link, with the same arguments.
        key: the key of this exchange, the same on every worker.
        worker: int32 scalar, this worker's index.
        num_workers: how many workers take part.
    """

    def link(phase: int, source: jax.Array, destination: jax.Array) -> jax.Array:
        link_key = key
        for part in (phase, source, destination):
            link_key = jax.random.fold_in(link_key, part)
        return arrives(phase, link_key, source, destination) | (source == destination)

    key = portable(key)
    me = jnp.asarray(worker, jnp.int32)
    everyone = jnp.arange(num_workers, dtype=jnp.int32)
    outgoing = jax.vmap(link, in_axes=(None, None, 0))
    incoming = jax.vmap(link, in_axes=(None, 0, None))
    return Delivery(
        sent=outgoing(REDUCE_SCATTER, me, everyone),
        received=incoming(REDUCE_SCATTER, everyone, me),
        gathered=incoming(ALL_GATHER, everyone, me),
    )


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
        if self.packets is not None and self.packets < 1:
            raise ValueError(f"packets={self.packets}: expected None or an integer of at least 1")

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
        """Returns `()`: past losses say nothing of the next."""
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
            rate = self.drop_rate if phase == REDUCE_SCATTER else gather_rate
            # Uniform draws lie in [0, 1), so that rate 0 drops nothing and rate 1 everything.
            return jax.random.uniform(link_key, shape, jnp.float32) >= rate

        return sample_links(arrives, key, worker, num_workers), state


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Lossless:
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


def check_delivery(delivery: Delivery, num_workers: int) -> Delivery:
    """Returns a delivery with fields `[num_workers, packets]`.

    Raises:
        ValueError: A field is not boolean, has the wrong shape, or another than the others.
    """
    shape = jnp.shape(delivery.sent)
    for field, value in zip(Delivery._fields, delivery, strict=True):
        name = f"delivery.{field}"
        if jnp.result_type(value) != jnp.bool_:
            raise ValueError(f"{name} has dtype {jnp.result_type(value)}: expected bool")
        if jnp.ndim(value) not in (1, 2) or jnp.shape(value)[0] != num_workers:
            raise ValueError(
                f"{name} has shape {jnp.shape(value)}: expected ({num_workers},) or "
                f"({num_workers}, packets), one row for each worker of the axis"
            )
        if jnp.shape(value) != shape:
            raise ValueError(
                f"{name} has shape {jnp.shape(value)}: expected {shape}, that of delivery.sent"
            )
    return Delivery(*(jnp.reshape(value, (num_workers, -1)) for value in delivery))


def _check_rate(name: str, rate: Any) -> None:
    """Raises if a number that is known already is no probability; traced numbers pass."""
    if isinstance(rate, jax.core.Tracer):
        return
    value = np.asarray(rate)
    shown = repr(rate) if isinstance(rate, str) else rate
    if not (np.issubdtype(value.dtype, np.number) and ((value >= 0) & (value <= 1)).all()):
        raise ValueError(f"{name}={shown}: expected a probability in [0, 1]")
