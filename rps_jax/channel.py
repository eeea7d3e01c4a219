"""Where loss comes from: a channel says which messages of one exchange arrive.

Yu et al., "Distributed Learning over Unreliable Networks", ICML 2019, section 3: every message of
the reduce-scatter and of the all-gather is dropped independently with probability p.

Both ends of a message must agree on its fate without talking to each other. So every draw comes
from a key of its own link, `(key, phase, source, destination)`, and each worker makes only the
draws of the links that touch it: O(num_workers), the same wherever the worker is placed.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from rps_jax.axis import AxisName, axis_size

REDUCE_SCATTER, ALL_GATHER = 0, 1
"""The phases of an exchange, as `arrives` of `sample_links` is given them."""

Assignment = Literal["random", "fixed"]
ASSIGNMENTS: tuple[Assignment, ...] = ("random", "fixed")


class Delivery(NamedTuple):
    """One worker's view of one exchange: what arrived.

    Each field is a boolean array `[num_workers]`, or `[num_workers, packets]` where a message is
    cut into packets that are lost one by one. A worker's own messages always arrive.

    Attributes:
        sent: reduce-scatter; my block for server j reached j.
        received: reduce-scatter; worker i's block reached me, its server.
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

    me = jnp.asarray(worker, jnp.int32)
    everyone = jnp.arange(num_workers, dtype=jnp.int32)
    outgoing = jax.vmap(link, in_axes=(None, None, 0))
    incoming = jax.vmap(link, in_axes=(None, 0, None))
    return Delivery(
        sent=outgoing(REDUCE_SCATTER, me, everyone),
        received=incoming(REDUCE_SCATTER, everyone, me),
        gathered=incoming(ALL_GATHER, everyone, me),
    )


@jax.tree_util.register_dataclass
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
        _check_rate("drop_rate", self.drop_rate)
        _check_rate("all_gather_drop_rate", self.all_gather_drop_rate)
        if self.packets is not None and self.packets < 1:
            raise ValueError(f"packets={self.packets}: expected None or an integer of at least 1")

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
        shape = () if self.packets is None else (self.packets,)

        def arrives(
            phase: int, link_key: jax.Array, source: jax.Array, destination: jax.Array
        ) -> jax.Array:
            rate = self.drop_rate if phase == REDUCE_SCATTER else gather_rate
            # Uniform draws lie in [0, 1), so that rate 0 drops nothing and rate 1 everything.
            return jax.random.uniform(link_key, shape) >= rate

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


def draw_exchange(
    channel: Channel,
    state: Any,
    key: jax.Array,
    step: jax.Array | int,
    axis_name: AxisName,
    assignment: Assignment = "random",
) -> tuple[Delivery, jax.Array | int, Any]:
    """Draws all that is random in the exchange of one step: what arrives, and who serves what.

    A pure function of (channel, state, key, step): the same on any placement of the workers.

    Args:
        channel: where loss comes from.
        state: this worker's channel state.
        key: the key of the whole run, the same on every worker.
        step: int32 scalar, the number of this step.
        axis_name: the worker axis, or a tuple of axes.
        assignment: "random" draws anew at each step which worker serves which block; "fixed" has
            worker j serve block j always.

    Returns:
        `(delivery, shift, state)`: the first two are what `average_models` takes, the last is the
        channel state for the next step.
    """
    if assignment not in ASSIGNMENTS:
        raise ValueError(f"assignment={assignment!r}: expected one of {', '.join(ASSIGNMENTS)}")
    num_workers = axis_size(axis_name)
    channel_key, shift_key = jax.random.split(jax.random.fold_in(key, step))
    delivery, state = channel.sample(state, channel_key, jax.lax.axis_index(axis_name), num_workers)
    # A uniform cyclic shift makes the server of every single block uniform over the workers, which
    # is all that the analysis of the paper needs: each block is analysed by itself.
    shift = jax.random.randint(shift_key, (), 0, num_workers) if assignment == "random" else 0
    return delivery, shift, state


def _check_rate(name: str, rate: Any) -> None:
    """Raises if a number that is known already is no probability; traced numbers pass."""
    if isinstance(rate, jax.core.Tracer) or not hasattr(rate, "__float__"):
        return
    value = np.asarray(rate)
    if not ((value >= 0) & (value <= 1)).all():
        raise ValueError(f"{name}={rate}: expected a probability in [0, 1]")
