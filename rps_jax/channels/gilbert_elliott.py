"""Drops in bursts: each link goes bad and good again.

Gilbert, "Capacity of a Burst-Noise Channel", Bell System Technical Journal, 1960; Elliott,
"Estimates of Error Rates for Codes on Burst-Noise Channels", the same, 1963.
"""

import dataclasses
import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rps_jax import keys
from rps_jax.channels.channel import walk_links
from rps_jax.channels.fields import packet_shape, register_channel
from rps_jax.channels.two_states import check_stay, transitions
from rps_jax.checks import check_number, check_packets, check_scalar
from rps_jax.delivery import Delivery

BurstUnit = Literal["packets", "exchanges"]


class LinkStates(NamedTuple):
    """What a worker knows of its links after an exchange.

    Attributes:
        begun: bool scalar, whether there has been one; before it, `bad` says nothing.
        bad: whether the last packet found the link bad, bool `[num_workers]` each: of the links of
            `sent`, `received` and `gathered`.
    """

    begun: jax.Array
    bad: tuple[jax.Array, jax.Array, jax.Array]


@register_channel
@dataclasses.dataclass(frozen=True)
class GilbertElliott:
    """Each link is a Markov chain of two states, good and bad, that moves before every packet.

    Links are independent of each other, the link of two workers in the reduce-scatter and theirs
    in the all-gather included. All are stationary from the first exchange, so that at every
    exchange each packet is dropped with probability `drop_rate`.

    Attributes:
        drop_rate: the share of packets that are dropped in the long run, in [0, 1]. May be traced,
            as the other numbers.
        mean_burst: how many packets a link stays bad for, on average; at least 1. Without packets,
            and where bursts are counted in exchanges, how many exchanges. A link is bad for a
            share s of the time, (drop_rate - good_drop_rate) / (bad_drop_rate - good_drop_rate),
            and leaves the good state at most at once: bursts of fewer than s / (1 - s) cannot be.
            Drops are independent at 1 / (1 - s). Traced numbers, and s = 1, give the shortest
            bursts that can be where these are longer.
        packets: how many packets a message is cut into; None drops messages whole.
        good_drop_rate: probability that a packet is dropped while its link is good.
        bad_drop_rate: the same while it is bad; greater than `good_drop_rate`.
        burst_unit: whether links move before every packet or, "exchanges", before every message.

    Raises:
        ValueError: numbers out of range, or that do not fit together.

    >>> channel = GilbertElliott(drop_rate=0.1, mean_burst=8)
    >>> delivery, state = channel.sample(channel.init(16), jax.random.key(0), 3, num_workers=16)
    >>> delivery.gathered.shape
    (16,)
    """

    drop_rate: jax.Array | float
    mean_burst: jax.Array | float = dataclasses.field(
        default=8.0,
        metadata={"help": "How many packets (or exchanges) a link stays bad for, on average."},
    )
    packets: int | None = dataclasses.field(default=None, metadata={"static": True})
    good_drop_rate: jax.Array | float = dataclasses.field(
        default=0.0, metadata={"help": "Probability of a drop while a link is good."}
    )
    bad_drop_rate: jax.Array | float = dataclasses.field(
        default=1.0, metadata={"help": "Probability of a drop while a link is bad."}
    )
    burst_unit: BurstUnit = dataclasses.field(
        default="packets",
        metadata={
            "static": True,
            "help": "What bursts are counted in, where messages are cut into packets.",
        },
    )

    def __post_init__(self) -> None:
        rates = ("drop_rate", "good_drop_rate", "bad_drop_rate")
        for name in rates:
            check_number(name, getattr(self, name))
        check_number("mean_burst", self.mean_burst, 1, math.inf, "at least 1")
        check_packets(self.packets)
        if self.burst_unit not in ("packets", "exchanges"):
            raise ValueError(f"burst_unit={self.burst_unit!r}: expected packets or exchanges")
        numbers = [getattr(self, name) for name in (*rates, "mean_burst")]
        if not any(isinstance(number, jax.core.Tracer) for number in numbers):
            _check_possible(*(np.asarray(number, np.float64) for number in numbers))

    def init(self, num_workers: int) -> LinkStates:
        """Returns the state before the first exchange, in which no link is known."""
        unknown = jnp.zeros(num_workers, bool)
        return LinkStates(jnp.bool_(False), (unknown, unknown, unknown))

    def sample(
        self, state: LinkStates, key: jax.Array, worker: jax.Array | int, num_workers: int
    ) -> tuple[Delivery, LinkStates]:
        """Draws one exchange as `worker` sees it; see `Channel.sample`."""
        for name in ("drop_rate", "mean_burst", "good_drop_rate", "bad_drop_rate"):
            check_scalar(name, getattr(self, name))
        shape = packet_shape(self.packets)
        moves = shape if self.burst_unit == "packets" else ()
        share_bad, fails, recovers = self._chain()
        good_rate = jnp.asarray(self.good_drop_rate, jnp.float32)
        bad_rate = jnp.asarray(self.bad_drop_rate, jnp.float32)

        def move(
            phase: int, key: jax.Array, source: Any, destination: Any, was_bad: jax.Array
        ) -> tuple[jax.Array, jax.Array]:
            del phase, source, destination
            start_key, move_key, drop_key = (jax.random.fold_in(key, i) for i in range(3))
            # The move from a stationary start is stationary.
            start = keys.uniform(start_key) < share_bad
            draws = jnp.atleast_1d(keys.uniform(move_key, moves))
            bad = _walk(jnp.where(state.begun, was_bad, start), draws < fails, draws >= recovers)
            drop_rate = jnp.where(bad.reshape(moves), bad_rate, good_rate)
            return keys.uniform(drop_key, shape) >= drop_rate, bad[-1]

        delivery, bad = walk_links(move, state.bad, key, worker, num_workers)
        # Of the type of the state: in a shard_map, a constant has another, which no scan takes.
        return delivery, LinkStates(state.begun | True, bad)

    def _chain(self) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns the share of time in the bad state, and the probabilities to enter and leave."""
        good, bad = jnp.float32(self.good_drop_rate), jnp.float32(self.bad_drop_rate)
        share = (jnp.float32(self.drop_rate) - good) / (bad - good)
        return share, *transitions(share, self.mean_burst)


def _walk(start: jax.Array, from_good: jax.Array, from_bad: jax.Array) -> jax.Array:
    """Returns whether a link is bad after each of some moves, `[moves]`.

    Args:
        start: bool scalar, whether it was bad before them.
        from_good: bool `[moves]`, whether a move leads from good to bad.
        from_bad: bool `[moves]`, whether it leads from bad to bad.
    """

    def after(first: Any, second: Any) -> Any:
        return tuple(jnp.where(bad, second[1], second[0]) for bad in first)

    if_good, if_bad = jax.lax.associative_scan(after, (from_good, from_bad))
    return jnp.where(start, if_bad, if_good)


def _check_possible(
    drop_rate: np.ndarray, good: np.ndarray, bad: np.ndarray, mean_burst: np.ndarray
) -> None:
    """Raises `ValueError` if no chain has these numbers."""
    if not (good < bad).all():
        raise ValueError(f"bad_drop_rate={bad}: expected more than good_drop_rate={good}")
    if not ((good <= drop_rate) & (drop_rate <= bad)).all():
        raise ValueError(
            f"drop_rate={drop_rate}: expected a number in [{good}, {bad}], between the rates of "
            "the good and the bad state"
        )
    share = (drop_rate - good) / (bad - good)
    why = f"drop_rate={drop_rate} keeps links bad for {np.max(share):.4g} of the time"
    check_stay("mean_burst", mean_burst, share, why)
