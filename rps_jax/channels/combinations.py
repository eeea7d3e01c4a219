"""Channels made of others: either of two causes, one after the other, messages that count whole.

Each is a channel as any other, and its numbers are those of its parts.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rps_jax import keys
from rps_jax.channels.channel import Channel
from rps_jax.channels.fields import register_channel
from rps_jax.delivery import Delivery


@register_channel
@dataclasses.dataclass(frozen=True)
class Either:
    """A message is dropped if either of two channels drops it, independently of each other.

    Attributes:
        first: one channel.
        second: the other. Where one of them drops packets and the other messages, a message that
            is dropped loses all of its packets.

    Raises:
        ValueError: by `sample`, of two channels that both say who serves which block, or that cut
            messages into different numbers of packets.

    >>> from rps_jax import Bernoulli, Outage
    >>> channel = Either(Bernoulli(0.01, packets=8), Outage(away_rate=0.05))
    >>> delivery, _ = channel.sample(channel.init(4), jax.random.key(0), 3, num_workers=4)
    >>> delivery.gathered.shape
    (4, 8)
    """

    first: Channel
    second: Channel

    @property
    def packets(self) -> int | None:
        """How many packets a message is cut into."""
        return _packets_of(self.first, self.second)

    def init(self, num_workers: int) -> tuple[Any, Any]:
        """Returns the states of both."""
        return self.first.init(num_workers), self.second.init(num_workers)

    def sample(
        self, state: tuple[Any, Any], key: jax.Array, worker: jax.Array | int, num_workers: int
    ) -> tuple[Delivery, tuple[Any, Any]]:
        """Draws one exchange as `worker` sees it; see `Channel.sample`."""
        deliveries, state = _sample_all((self.first, self.second), state, key, worker, num_workers)
        one, other = deliveries
        both = [a & b for a, b in zip(one.masks, other.masks, strict=True)]
        if one.shift is not None and other.shift is not None:
            raise ValueError(
                "two shifts: expected one channel at most that says who serves a block"
            )
        shift = one.shift if other.shift is None else other.shift
        waits = [each.seconds for each in deliveries if each.seconds is not None]
        seconds = jnp.stack(waits).max() if waits else None
        return Delivery(both[0], both[1], both[2], shift, seconds), (state[0], state[1])


@register_channel
@dataclasses.dataclass(frozen=True)
class Schedule:
    """One channel after the other.

    All of them go on from exchange to exchange, whether it is their turn or not, so that each is as
    stationary as it is by itself.

    Attributes:
        channels: one or more channels, a tuple. Where some of them drop packets, those that drop
            messages drop all packets of one. Where some of them say who serves which block, that is
            drawn for the others, under a fixed assignment too.
        boundaries: int32, one fewer: the exchanges, counted from 0, at which the second, the third
            and so on begin. May be traced.

    Raises:
        ValueError: not one boundary fewer than channels, or boundaries that do not rise.
    """

    channels: tuple[Channel, ...]
    boundaries: jax.Array | tuple[int, ...]

    def __post_init__(self) -> None:
        boundaries, fewer = self.boundaries, len(self.channels) - 1
        if jnp.shape(jnp.asarray(boundaries)) != (fewer,):
            raise ValueError(f"boundaries={boundaries}: expected {fewer}, one fewer than channels")
        if not isinstance(boundaries, jax.core.Tracer):
            numbers = np.asarray(boundaries)
            rising = np.all(np.diff(numbers, prepend=0) >= 0)
            if fewer and not (rising and np.issubdtype(numbers.dtype, np.integer)):
                raise ValueError(f"boundaries={boundaries}: expected rising integers, 0 or more")

    @property
    def packets(self) -> int | None:
        """How many packets a message is cut into."""
        return _packets_of(*self.channels)

    def init(self, num_workers: int) -> tuple[jax.Array, tuple[Any, ...]]:
        """Returns the number of the exchange and the states of all channels."""
        return jnp.int32(0), tuple(channel.init(num_workers) for channel in self.channels)

    def sample(
        self,
        state: tuple[jax.Array, tuple[Any, ...]],
        key: jax.Array,
        worker: jax.Array | int,
        num_workers: int,
    ) -> tuple[Delivery, tuple[jax.Array, tuple[Any, ...]]]:
        """Draws one exchange as `worker` sees it; see `Channel.sample`."""
        exchange, states = state
        deliveries, states = _sample_all(self.channels, states, key, worker, num_workers)
        turn = jnp.sum(exchange >= jnp.asarray(self.boundaries, jnp.int32), dtype=jnp.int32)
        masks = zip(*(delivery.masks for delivery in deliveries), strict=True)
        sent, received, gathered = (jnp.stack(of_field)[turn] for of_field in masks)
        waits = [delivery.seconds for delivery in deliveries]
        seconds = None
        if any(wait is not None for wait in waits):
            seconds = jnp.stack([jnp.float32(0) if wait is None else wait for wait in waits])[turn]
        shifts = [delivery.shift for delivery in deliveries]
        shift = None
        if any(each is not None for each in shifts):
            # Those that do not say who serves which block draw it.
            drawn = keys.randint(jax.random.fold_in(keys.portable(key), len(shifts)), num_workers)
            shift = jnp.stack([drawn if each is None else each for each in shifts])[turn]
        return Delivery(sent, received, gathered, shift, seconds), (exchange + 1, states)


@register_channel
@dataclasses.dataclass(frozen=True)
class AllOrNothing:
    """A message counts only if all of its packets arrive; else the whole of it is a drop.

    What RPS gains from packets is the difference to this.

    Attributes:
        channel: one that drops packets.
    """

    channel: Channel

    def init(self, num_workers: int) -> Any:
        """Returns the state of the channel."""
        return self.channel.init(num_workers)

    def sample(
        self, state: Any, key: jax.Array, worker: jax.Array | int, num_workers: int
    ) -> tuple[Delivery, Any]:
        """Draws one exchange as `worker` sees it; see `Channel.sample`."""
        delivery, state = self.channel.sample(state, key, worker, num_workers)
        whole = [mask.reshape(num_workers, -1).all(axis=1) for mask in delivery.masks]
        sent, received, gathered = whole
        return delivery._replace(sent=sent, received=received, gathered=gathered), state


def _packets_of(*channels: Channel) -> int | None:
    """Returns how many packets there are, of channels that drop packets or messages.

    Raises:
        ValueError: different numbers.
    """
    each = (getattr(channel, "packets", None) for channel in channels)
    return _agreed({packets for packets in each if packets is not None})


def _agreed(numbers: set[int]) -> int | None:
    numbers = numbers - {1} or numbers  # One packet is the whole message.
    if len(numbers) > 1:
        raise ValueError(f"packets={sorted(numbers)}: expected the same number of all channels")
    return numbers.pop() if numbers else None


def _sample_all(
    channels: tuple[Channel, ...],
    states: tuple[Any, ...],
    key: jax.Array,
    worker: jax.Array | int,
    num_workers: int,
) -> tuple[list[Delivery], tuple[Any, ...]]:
    """Samples each channel by a key of its own; masks are of packets if any of them are."""
    key = keys.portable(key)
    sampled = [
        channel.sample(state, jax.random.fold_in(key, i), worker, num_workers)
        for i, (channel, state) in enumerate(zip(channels, states, strict=True))
    ]
    masks = [mask for delivery, _ in sampled for mask in delivery.masks]
    packets = _agreed({jnp.shape(mask)[1] for mask in masks if jnp.ndim(mask) == 2})

    def in_packets(delivery: Delivery) -> Delivery:
        if packets is None:
            return delivery
        shape = (num_workers, packets)
        sent, received, gathered = (
            jnp.broadcast_to(mask.reshape(num_workers, -1), shape) for mask in delivery.masks
        )
        return delivery._replace(sent=sent, received=received, gathered=gathered)

    return [in_packets(delivery) for delivery, _ in sampled], tuple(state for _, state in sampled)
