"""What a worker counts of its links while it trains, on its own device: O(num_workers) integers."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rps_jax.delivery import Delivery, in_packets

BURST_BINS = 12
"""Bins of the lengths of bursts: 1, 2 to 3, 4 to 7, and so on; the last is open."""


class LinkCounts(NamedTuple):
    """What arrived at one worker in the exchanges that were counted.

    Attributes:
        packed: uint32 `[5 * num_workers + 1 + BURST_BINS]`: all of what follows end to end, in one
            array, as each array that a step is given costs time. With leading axes, of several
            workers.
    """

    packed: Any

    @classmethod
    def zero(cls, num_workers: int) -> "LinkCounts":
        """Returns the counts of no exchange."""
        return cls(jnp.zeros(5 * num_workers + 1 + BURST_BINS, jnp.uint32))

    @property
    def num_workers(self) -> int:
        """How many workers take part."""
        return (self.packed.shape[-1] - 1 - BURST_BINS) // 5

    @property
    def delivered(self) -> Any:
        """`[2, num_workers]`, packets that arrived, by phase and source.

        A worker's own always arrive: of itself, it counts how many there were on each link.
        """
        n = self.num_workers
        return self.packed[..., : 2 * n].reshape(*self.packed.shape[:-1], 2, n)

    @property
    def arrivals(self) -> Any:
        """`[num_workers + 1]`, of how many packets of its block those of k workers reached it.

        Of the block that it is the server of; its own is one of the k.
        """
        n = self.num_workers
        return self.packed[..., 2 * n : 3 * n + 1]

    @property
    def bursts(self) -> Any:
        """`[BURST_BINS]`, how many bursts have ended, in both phases.

        Bin b counts those of 2^b to 2^(b + 1) - 1 packets dropped in a row on one link, across
        exchanges.
        """
        n = self.num_workers
        return self.packed[..., 3 * n + 1 : -2 * n]

    @property
    def dropping(self) -> Any:
        """`[2, num_workers]`, packets dropped in a row on each link until now."""
        n = self.num_workers
        return self.packed[..., -2 * n :].reshape(*self.packed.shape[:-1], 2, n)

    def begin_anew(self, when: jax.Array) -> "LinkCounts":
        """Returns counts of nothing where `when`, a bool scalar, holds; bursts go on."""
        length = self.packed.shape[-1]
        counts = jnp.arange(length) < length - 2 * self.num_workers
        return LinkCounts(jnp.where(when & counts, jnp.uint32(0), self.packed))

    def add(self, delivery: Delivery) -> "LinkCounts":
        """Returns the counts with one more exchange, in which the worker's own have arrived."""
        _, received, gathered, *_ = in_packets(delivery, self.num_workers)
        arrived_2xWxK = _in_words(jnp.stack([received, gathered]))
        bursts, dropping = _bursts(arrived_2xWxK, self.dropping, received.shape[1])
        reached_P = received.sum(0, dtype=jnp.uint32)
        workers = jnp.arange(self.num_workers + 1, dtype=jnp.uint32)[:, None]
        counts = (
            self.delivered + jax.lax.population_count(arrived_2xWxK).sum(2, dtype=jnp.uint32),
            self.arrivals + (reached_P[None] == workers).sum(1, dtype=jnp.uint32),
            self.bursts + bursts,
            dropping,
        )
        return LinkCounts(jnp.concatenate([count.ravel() for count in counts]))


def _in_words(arrived_2xWxP: jax.Array) -> jax.Array:
    """Packs what arrived into words of 32 packets, a bit each, the first the lowest.

    Of small numbers, kernels cost by their number: one counts all bits of a word.

    Returns:
        uint32 `[2, W, K]`; bits of no packet are 0.
    """
    packets = arrived_2xWxP.shape[2]
    size = min(packets, 32)
    arrived_2xWxP = jnp.pad(arrived_2xWxP, ((0, 0), (0, 0), (0, -packets % size)))
    bits = jnp.uint32(1) << jnp.arange(size, dtype=jnp.uint32)[None, None, None]
    words = arrived_2xWxP.reshape(*arrived_2xWxP.shape[:2], -1, size)
    return jnp.where(words, bits, jnp.uint32(0)).sum(3, dtype=jnp.uint32)


def _bursts(
    arrived_2xWxK: jax.Array, dropping_2xW: jax.Array, packets: int
) -> tuple[jax.Array, jax.Array]:
    """Counts the bursts that end in an exchange.

    Args:
        arrived_2xWxK: words of what arrived.
        dropping_2xW: uint32; packets dropped in a row before it.
        packets: of a message.

    Returns:
        uint32 `[BURST_BINS]`; and the packets dropped in a row after it.
    """
    arrived, any_arrived = arrived_2xWxK, arrived_2xWxK > 0
    # Places of packets: a word's own, the last that arrived in or before it, the first in it.
    place_1x1xK = 32 * jnp.arange(arrived.shape[2], dtype=jnp.int32)[None, None]
    start = -1 - dropping_2xW[:, :, None].astype(jnp.int32)
    last = place_1x1xK + 31 - jax.lax.clz(arrived).astype(jnp.int32)
    last = jax.lax.cummax(jnp.where(any_arrived, last, start), axis=2)
    last_before = jnp.concatenate([start, last[:, :, :-1]], axis=2)
    first = place_1x1xK + jax.lax.population_count(~arrived & arrived - 1).astype(jnp.int32)
    # The burst that a word begins in: of a length's binary digits, the first decides.
    length = jnp.where(any_arrived, first - 1 - last_before, 0)
    digits = jnp.minimum(32 - jax.lax.clz(length), BURST_BINS)
    bins = jnp.arange(1, BURST_BINS + 1, dtype=jnp.int32).reshape(-1, 1, 1, 1)
    # Bits until which the others have dropped 1, 2, 4, ... in a row, and how many end there.
    dropped, at_least = ~arrived, []
    dropped &= dropped + 1
    for more in (1, 2, 4, 8, 16):
        at_least.append(jax.lax.population_count(dropped << 1 & arrived))
        dropped &= dropped << more
    longer = [jnp.zeros_like(dropped)] * (BURST_BINS + 1 - len(at_least))
    at_least_BxLxWxK = jnp.stack(at_least + longer)
    ended = at_least_BxLxWxK[:-1] - at_least_BxLxWxK[1:] + (digits[None] == bins).astype(jnp.uint32)
    return ended.sum((1, 2, 3), dtype=jnp.uint32), (packets - 1 - last[:, :, -1]).astype(jnp.uint32)
