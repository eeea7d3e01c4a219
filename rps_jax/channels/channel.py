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

    Args:
        draw: `(phase, link_key, source, destination) -> bool`, a scalar or `[packets]`. It is asked
            at both ends of a link, with the same arguments.
        key: the key of this exchange, the same on every worker.
        worker: int32 scalar, this worker's index.
        num_workers: how many workers take part.

    Returns:
        What was drawn; True of the links of a worker to itself.
    """

    def arrives(*link: Any) -> tuple[jax.Array, tuple[()]]:
        *which, memory = link
        return draw(*which), memory

    return walk_links(arrives, ((), (), ()), key, worker, num_workers)[0]


def link_key(key: jax.Array, phase: int, source: jax.Array, destination: jax.Array) -> jax.Array:
    """Returns the key of one link in one phase, of the key of an exchange."""
    for part in (phase, source, destination):
        key = jax.random.fold_in(key, part)
    return key


def walk_links(
    move: Callable[[int, jax.Array, jax.Array, jax.Array, Any], tuple[jax.Array, Any]],
    memory: tuple[Any, Any, Any],
    key: jax.Array,
    worker: jax.Array | int,
    num_workers: int,
) -> tuple[Delivery, tuple[Any, Any, Any]]:
    """Draws one exchange on links that have a memory; see `sample_links`.

    Args:
        move: `(phase, link_key, source, destination, memory) -> (arrives, memory)` of one link.
        memory: what this worker knows of the links of `sent`, `received` and `gathered`: pytrees of
            arrays `[num_workers, ...]`.
        key: the key of this exchange, the same on every worker.
        worker: int32 scalar, this worker's index.
        num_workers: how many workers take part.

    Returns:
        What arrives, and the memory for the next exchange.
    """

    def link(
        phase: int, source: jax.Array, destination: jax.Array, memory: Any
    ) -> tuple[jax.Array, Any]:
        of_link = link_key(key, phase, source, destination)
        arrives, memory = move(phase, of_link, source, destination, memory)
        return arrives | (source == destination), memory

    key = portable(key)
    me = jnp.asarray(worker, jnp.int32)
    everyone = jnp.arange(num_workers, dtype=jnp.int32)
    outgoing = jax.vmap(link, in_axes=(None, None, 0, 0))
    incoming = jax.vmap(link, in_axes=(None, 0, None, 0))
    sent, of_sent = outgoing(REDUCE_SCATTER, me, everyone, memory[0])
    received, of_received = incoming(REDUCE_SCATTER, everyone, me, memory[1])
    gathered, of_gathered = incoming(ALL_GATHER, everyone, me, memory[2])
    return Delivery(sent, received, gathered), (of_sent, of_received, of_gathered)
