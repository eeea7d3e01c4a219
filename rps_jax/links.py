"""What a worker counts of its links while it trains, on its own device: O(num_workers) integers."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rps_jax.delivery import Delivery, check_delivery

BURST_BINS = 12
"""Bins of the lengths of bursts: 1, 2 to 3, 4 to 7, and so on; the last is open."""


class LinkCounts(NamedTuple):
    """What arrived at one worker in the exchanges that were counted.

    Attributes:
        delivered: uint32 `[2, num_workers]`, packets that arrived, by phase and source. A worker's
            own always arrive: of itself, it counts how many there were on each link.
        arrivals: uint32 `[num_workers + 1]`, of how many packets of its block those of k workers
            reached it, their server; its own is one of them.
        bursts: uint32 `[BURST_BINS]`, bursts that have ended, of both phases: bin b counts those of
            2^b to 2^(b + 1) - 1 packets dropped in a row on one link, across exchanges.
        dropping: int32 `[2, num_workers]`, packets dropped in a row on each link until now.
    """

    delivered: jax.Array
    arrivals: jax.Array
    bursts: jax.Array
    dropping: jax.Array

    @classmethod
    def zero(cls, num_workers: int) -> "LinkCounts":
        """Returns the counts of no exchange."""
        return cls(
            delivered=jnp.zeros((2, num_workers), jnp.uint32),
            arrivals=jnp.zeros(num_workers + 1, jnp.uint32),
            bursts=jnp.zeros(BURST_BINS, jnp.uint32),
            dropping=jnp.zeros((2, num_workers), jnp.int32),
        )

    def begin_anew(self, when: jax.Array) -> "LinkCounts":
        """Returns counts of nothing where `when`, a bool scalar, holds; bursts go on."""
        zero = LinkCounts.zero(self.delivered.shape[1])._replace(dropping=self.dropping)
        return jax.tree.map(lambda none, count: jnp.where(when, none, count), zero, self)

    def add(self, delivery: Delivery) -> "LinkCounts":
        """Returns the counts with one more exchange, as the worker sees it."""
        num_workers = self.delivered.shape[1]
        _, received, gathered, *_ = check_delivery(delivery, num_workers)
        arrived_2xWxP = jnp.stack([received, gathered])
        lengths_2xWxP, dropping = _lengths_of_bursts(arrived_2xWxP, self.dropping)
        # Of a length's binary digits, the first decides; of 0, which is no burst, there is none.
        digits = 32 - jax.lax.clz(lengths_2xWxP)
        bins = jnp.arange(1, BURST_BINS + 1, dtype=jnp.int32)
        reached_P = received.sum(0, dtype=jnp.int32)
        workers = jnp.arange(num_workers + 1, dtype=jnp.int32)
        return LinkCounts(
            delivered=self.delivered + arrived_2xWxP.sum(2, dtype=jnp.uint32),
            arrivals=self.arrivals + _histogram(reached_P, workers),
            bursts=self.bursts + _histogram(jnp.minimum(digits, BURST_BINS), bins),
            dropping=dropping,
        )


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
    last_2xWxP = jax.lax.cummax(jnp.where(arrived_2xWxP, place_1x1xP, before_2xWx1), axis=2)
    last_before_2xWxP = jnp.concatenate([before_2xWx1, last_2xWxP[:, :, :-1]], axis=2)
    lengths = jnp.where(arrived_2xWxP, place_1x1xP - 1 - last_before_2xWxP, 0)
    return lengths, packets - 1 - last_2xWxP[:, :, -1]


def _histogram(values: jax.Array, bins: jax.Array) -> jax.Array:
    """Returns how many of the values are equal to each bin, uint32."""
    return (values.reshape(-1, 1) == bins[None]).sum(0, dtype=jnp.uint32)
