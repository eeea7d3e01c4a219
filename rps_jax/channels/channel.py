"""A channel says which messages of one exchange arrive.

Both ends of a message must agree on its fate without talking to each other. So every draw comes
from a key of its own link, `(key, phase, source, destination)`, and each worker makes only the
draws of the links that touch it: O(num_workers), the same wherever the worker is placed.
"""

from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from rps_jax.delivery import Delivery
from rps_jax.keys import portable

REDUCE_SCATTER, ALL_GATHER = 0, 1
"""The phases of an exchange, as `draw` of `sample_links` is given them."""


class Channel(Protocol):
    """A source of deliveries. Implementations are pytrees, so that jit may trace their numbers.

    A channel may have a memory: what a link was like in the last exchange, say. Both ends of a link
    hold the same memory and update it with the same draws, so they go on agreeing. `init` gives
    every worker the same state and knows no key: a channel that starts at random says so in its
    state and draws its start in the first `sample`, by the keys of the links.
    """

    def init(self, num_workers: int) -> Any:
        """Returns one worker's channel state before the first exchange: `()` if memoryless.

        Args:
            num_workers: how many workers take part.
        """
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
    draw: Callable[[int, jax.Array, jax.Array, jax.Array], jax.Array],
    key: jax.Array,
    worker: jax.Array | int,
    num_workers: int,
) -> Delivery:
    """Draws something for every link that touches `worker`, the same at both ends of each.

    Whether messages arrive is a `Delivery`; what moves the memory of a channel is one more call
    with another key, of which each field belongs to the links of that field.

    Args:
        draw: `(phase, link_key, source, destination) -> bool`, a scalar or `[packets]`. It is asked
            at both ends of a link, with the same arguments.
        key: the key of this exchange, the same on every worker.
        worker: int32 scalar, this worker's index.
        num_workers: how many workers take part.

    Returns:
        What was drawn; True of the links of a worker to itself.
    """

    def link(phase: int, source: jax.Array, destination: jax.Array) -> jax.Array:
        link_key = key
        for part in (phase, source, destination):
            link_key = jax.random.fold_in(link_key, part)
        return draw(phase, link_key, source, destination) | (source == destination)

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
