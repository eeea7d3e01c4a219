"""What a worker counts of its links while it trains, on its own device: O(num_workers) integers."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rps_jax.delivery import Delivery, check_delivery

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
        """Returns the counts with one more exchange, as the worker sees it."""
        _, received, gathered, *_ = check_delivery(delivery, self.num_workers)
        arrived_2xWxP = jnp.stack([received, gathered])
        lengths_2xWxP, dropping = _lengths_of_bursts(arrived_2xWxP, self.dropping.astype(jnp.int32))
        # Of a length's binary digits, the first decides; of 0, which is no burst, there is none.
        digits = jnp.minimum(32 - jax.lax.clz(lengths_2xWxP), BURST_BINS)
        bins = jnp.arange(1, BURST_BINS + 1, dtype=jnp.int32)
        reached_P = received.sum(0, dtype=jnp.int32)
        workers = jnp.arange(self.num_workers + 1, dtype=jnp.int32)
        counts = (
            self.delivered + arrived_2xWxP.sum(2, dtype=jnp.uint32),
            self.arrivals + _histogram(reached_P, workers),
            self.bursts + _histogram(digits, bins),
            dropping.astype(jnp.uint32),
        )
        return LinkCounts(jnp.concatenate([count.ravel() for count in counts]))


def _lengths_of_bursts(
    arrived_2xWxP: jax.Array, dropping_2xW: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns how many packets in a row were dropped before each that arrived.

    Args:
        arrived_2xWxP: bool; what arrived in an exchange.
        dropping_2xW: int32; packets dropped in a row before it.

    Returns:
        int32 `[2, W, P]`, 0 of packets that did not arrive; and those dropped in a row after it.
    """
    packets = arrived_2xWxP.shape[2]
    place_1x1xP = jnp.arange(packets, dtype=jnp.int32)[None, None]
    before_2xWx1 = -1 - dropping_2xW[:, :, None]
    last_2xWxP = _running_max(jnp.where(arrived_2xWxP, place_1x1xP, before_2xWx1))
    last_before_2xWxP = jnp.concatenate([before_2xWx1, last_2xWxP[:, :, :-1]], axis=2)
    lengths = jnp.where(arrived_2xWxP, place_1x1xP - 1 - last_before_2xWxP, 0)
    return lengths, packets - 1 - last_2xWxP[:, :, -1]


def _running_max(values: jax.Array) -> jax.Array:
    """Returns the maxima along the last axis until each place.

    In log2 steps: that of `jax.lax.cummax` takes quadratic time on CPUs (jax 0.10).
    """
    distance = 1
    while distance < values.shape[-1]:
        earlier = jnp.concatenate([values[..., :distance], values[..., :-distance]], axis=-1)
        values = jnp.maximum(values, earlier)
        distance *= 2
    return values


def _histogram(values: jax.Array, bins: jax.Array) -> jax.Array:
    """Returns how many of the values are equal to each bin, uint32."""
    equal = values.reshape(1, -1) == bins[:, None]
    return equal.sum(1, dtype=jnp.uint32)
