"""What arrived in one exchange, as one worker sees it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rps_jax.checks import check_integer


class Delivery(NamedTuple):
    """One worker's view of one exchange: what arrived.

    Each mask is a boolean array `[num_workers]`, or `[num_workers, packets]` where a message is
    cut into packets that are dropped one by one. A worker's own messages always arrive.

    Attributes:
        sent: reduce-scatter; my block for server j reached j.
        received: reduce-scatter; worker i's block reached me, its server. The other end of
            `sent`: of all workers, sent[i][j] == received[j][i].
        gathered: all-gather; server j's average reached me.
        shift: int32 scalar, the same on every worker: block j was served by worker
            (j + shift) mod num_workers; None for worker j.
        seconds: float32 scalar, how long this worker waited for both phases; None where that is not
            simulated. The exchange has taken as long as the slowest worker waited.
        away: bool scalar, whether this worker was away for so long that it only listens, and goes
            on from the others' model; None where all are always there.
    """

    sent: jax.Array
    received: jax.Array
    gathered: jax.Array
    shift: jax.Array | None = None
    seconds: jax.Array | None = None
    away: jax.Array | None = None

    @property
    def masks(self) -> tuple[jax.Array, jax.Array, jax.Array]:
        """What arrived, without who served what."""
        return self.sent, self.received, self.gathered


def in_packets(delivery: Delivery, num_workers: int) -> Delivery:
    """Returns a delivery, checked, with masks `[num_workers, packets]`.

    Raises:
        TypeError: something else than a delivery.
        ValueError: a mask is not boolean, has the wrong shape, or another than the others; a shift
            that is no integer scalar.
    """
    if not isinstance(delivery, Delivery):
        raise TypeError(f"delivery={delivery!r}: expected an rps_jax.Delivery, as of draw_exchange")
    if delivery.shift is not None:
        check_integer("delivery.shift", delivery.shift)
    shape = jnp.shape(delivery.sent)
    for field, value in zip(Delivery._fields, delivery.masks, strict=False):
        name = f"delivery.{field}"
        if jnp.result_type(value) != jnp.bool_:
            raise ValueError(f"{name} has dtype {jnp.result_type(value)}: expected bool")
        if jnp.ndim(value) not in (1, 2) or jnp.shape(value)[0] != num_workers:
            raise ValueError(
                f"{name} has shape {jnp.shape(value)}: expected ({num_workers},) or "
                f"({num_workers}, packets), one row for each worker of the axis"
            )
        if jnp.ndim(value) == 2 and jnp.shape(value)[1] == 0:
            raise ValueError(
                f"{name} has shape {jnp.shape(value)}: expected at least 1 packet a message"
            )
        if jnp.shape(value) != shape:
            raise ValueError(
                f"{name} has shape {jnp.shape(value)}: expected {shape}, that of delivery.sent"
            )
    sent, received, gathered = (jnp.reshape(mask, (num_workers, -1)) for mask in delivery.masks)
    return delivery._replace(sent=sent, received=received, gathered=gathered)


def with_own(delivery: Delivery, worker: jax.Array) -> Delivery:
    """Returns a delivery in packets in which a worker hears itself, whatever a channel says."""
    myself = jnp.arange(len(delivery.sent), dtype=jnp.int32)[:, None] == worker
    sent, received, gathered = (mask | myself for mask in delivery.masks)
    return delivery._replace(sent=sent, received=received, gathered=gathered)
