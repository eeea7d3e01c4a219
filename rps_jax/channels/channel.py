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
from rps_jax.keys import fold_in, portable

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
    draw: Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array],
    key: jax.Array,
    worker: jax.Array | int,
    num_workers: int,
) -> Delivery:
    """Draws something for every link that touches `worker`, the same at both ends of each.

    Args:
        draw: `(phase, link_key, source, destination) -> bool`, a scalar or `[packets]`. It is asked
            at both ends of a link, with the same arguments, which are traced: the key of the link,
            and int32 scalars.
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


def walk_links(
    move: Callable[[jax.Array, jax.Array, jax.Array, jax.Array, Any], tuple[jax.Array, Any]],
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
        phase: jax.Array, source: jax.Array, destination: jax.Array, memory: Any
    ) -> tuple[jax.Array, Any]:
        of_link = fold_in(key, phase, source, destination)
        arrives, memory = move(phase, of_link, source, destination, memory)
        return arrives | (source == destination), memory

    key = portable(key)
    me = jnp.full(num_workers, worker, jnp.int32)
    everyone = jnp.arange(num_workers, dtype=jnp.int32)
    # All links at once, `[3 num_workers]`: a third of the operations to compile and to start.
    moved = jax.vmap(link)(
        jnp.repeat(jnp.asarray([REDUCE_SCATTER, REDUCE_SCATTER, ALL_GATHER]), num_workers),
        jnp.concatenate([me, everyone, everyone]),
        jnp.concatenate([everyone, me, me]),
        jax.tree.map(lambda *of_three: jnp.concatenate(of_three), *memory),
    )
    (sent, of_sent), (received, of_received), (gathered, of_gathered) = (
        jax.tree.map(lambda x, i=i: x[i * num_workers : (i + 1) * num_workers], moved)
        for i in range(3)
    )
    return Delivery(sent, received, gathered), (of_sent, of_received, of_gathered)
