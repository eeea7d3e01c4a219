"""The carrier of real datagrams: the same rules and the same step, over a network that drops."""

import dataclasses
import functools
import weakref
from typing import Any, ClassVar, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback
from jax.experimental.buffer_callback import buffer_callback

from rps_jax.blocks import to_blocks
from rps_jax.carrier import Carrier
from rps_jax.delivery import Delivery
from rps_jax.keys import key_data
from rps_jax.rules import AverageModels
from rps_jax.servers import RECEIVED, Server
from rps_jax.step_exchange import StepExchange
from rps_jax.transport.layout import Layout, layout_of
from rps_jax.transport.seconds import Seconds


class Exchanged(NamedTuple):
    """What one worker saw of one exchange.

    Attributes:
        exchange: its number; another than asked for where the others are elsewhere.
        rows: uint8 `[num_workers, packets, length]`, the average of each server; valid until the
            next exchange.
        received: reduce-scatter; bool `[num_workers, packets]`: worker i's packets reached me.
        gathered: all-gather; the same of server j's averages.
        shift: block j was served by worker (j + shift) mod num_workers.
        away: whether this worker only listens, as it was away; see `rps_jax.Delivery`.
        seconds: where the time went.
    """

    exchange: int
    rows: np.ndarray
    received: np.ndarray
    gathered: np.ndarray
    shift: int
    away: bool = False
    seconds: Seconds = Seconds()


class Endpoint(Protocol):
    """What moves packets for one worker; see `rps_jax.transport.Network`."""

    worker: int
    num_workers: int
    payload_bytes: int

    def exchange(self, step: int, rows: np.ndarray, layout: Layout) -> Exchanged:
        """Takes part in one exchange of packets."""
        ...


_INTERRUPTS: weakref.WeakKeyDictionary[Endpoint, BaseException] = weakref.WeakKeyDictionary()
"""What has interrupted an exchange, as Ctrl-C does: JAX raises an error of its own instead."""


@dataclasses.dataclass(frozen=True)
class Datagrams(Carrier):
    """Carries the exchanges of one worker, a compiled program that calls the host.

    Attributes:
        network: that this worker has joined.
    """

    network: Endpoint
    numbers_exchanges: ClassVar[bool] = True

    def init(self, num_workers: int) -> tuple[()]:
        """Returns `()`.

        Raises:
            ValueError: another number of workers than the network has.
        """
        if num_workers != self.network.num_workers:
            expected = f"{self.network.num_workers}, those of the network"
            raise ValueError(f"num_workers={num_workers}: expected {expected}")
        return ()

    def worker(self) -> jax.Array:
        """Returns this worker's index."""
        return jnp.int32(self.network.worker)

    def exchange(
        self,
        state: Any,
        key: Any,
        step: jax.Array | int,
        tree: Any,
        otherwise: Any,
        server: Server = RECEIVED,
    ) -> tuple[Any, Delivery, Any]:
        """Averages over the network; see `rps_jax.Carrier.exchange`.

        Only the receiver knows what arrived: of `sent`, a worker knows what it sent itself.

        Raises:
            ValueError: a policy of servers that the network does not have.
        """
        del key
        if server.name != RECEIVED.name:
            raise ValueError(f"server={server.name!r}: expected 'received' over a real network")
        n = self.network.num_workers
        layout = layout_of(tree, n, self.network.payload_bytes)
        blocks, from_blocks = to_blocks(tree, n, layout.packets)
        fallback, _ = to_blocks(otherwise, n, layout.packets)
        mask = jax.ShapeDtypeStruct((n, layout.packets), bool)
        like = [jax.ShapeDtypeStruct(block.shape, block.dtype) for block in blocks]
        number, flag = (jax.ShapeDtypeStruct((), dtype) for dtype in (jnp.int32, bool))
        results = like, mask, mask, mask, number, flag
        in_place = buffer_callback(
            functools.partial(self._in_place, layout), results, has_side_effect=True
        )
        by_copies = functools.partial(
            io_callback, functools.partial(self._by_copies, layout, results), results
        )
        arguments = blocks, jnp.asarray(step, jnp.int32)
        averages, here, received, gathered, shift, away = (
            in_place(*arguments)
            if jax.default_backend() == "cpu"  # Where CPUs are all there is, without a branch.
            else jax.lax.platform_dependent(*arguments, cpu=in_place, default=by_copies)
        )
        sent = jnp.broadcast_to(jnp.arange(n)[:, None] == self.network.worker, mask.shape)
        delivery = Delivery(sent, received, gathered, shift, away=away)
        chosen = [
            jnp.where(here[:, :, None], *pair) for pair in zip(averages, fallback, strict=True)
        ]
        return from_blocks(chosen), delivery, state

    def sum(self, values: Any) -> Any:
        """Returns this worker's own: no worker waits for another's metrics."""
        return values

    def _in_place(self, layout: Layout, context: Any, outputs: Any, blocks: Any, step: Any) -> None:
        """Reads and writes the program's own memory, which the host shares with CPUs alone."""
        del context
        self._call_network(layout, jax.tree.map(np.asarray, outputs), blocks, step)

    def _by_copies(self, layout: Layout, results: Any, blocks: Any, step: Any) -> Any:
        outputs = jax.tree.map(lambda like: np.empty(like.shape, like.dtype), results)
        self._call_network(layout, outputs, blocks, step)
        return outputs

    def _call_network(self, layout: Layout, outputs: Any, blocks: Any, step: Any) -> None:
        rows = layout.rows([np.asarray(block) for block in blocks], self.network.num_workers)
        try:
            seen = self.network.exchange(int(np.asarray(step)), rows, layout)
        except BaseException as error:
            if not isinstance(error, Exception):
                _INTERRUPTS[self.network] = error
            raise
        # In the order of the blocks: XLA would look it up anew for every element.
        order = (np.arange(len(seen.gathered)) + seen.shift) % len(seen.gathered)
        averages, here, received, gathered, shift, away = outputs
        for output, servers in zip(averages, layout.blocks(seen.rows), strict=True):
            np.take(servers, order, axis=0, out=output, mode="clip")
        here[...] = seen.gathered[order]
        received[...], gathered[...] = seen.received, seen.gathered
        shift[...], away[...] = seen.shift, seen.away


def is_traced(tree: Any) -> bool:
    """Returns whether a pytree is of a function that is being compiled."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))


def average(carrier: Datagrams, rule: AverageModels, tree: Any, step: jax.Array) -> Any:
    """Averages a pytree in the network's next exchange; what is missed stays one's own.

    Returns when the exchange is over; inside of a compiled function, it is for the caller to wait.

    Args:
        carrier: of the network.
        rule: without a memory.
        tree: of numbers.
        step: int32 scalar, from which the rounding of messages draws.
    """
    if is_traced(tree):
        return _average(carrier, rule, tree, step)
    _INTERRUPTS.pop(carrier.network, None)
    try:
        # JAX would return at once, and the network could be left before the exchange.
        return jax.block_until_ready(_average(carrier, rule, tree, step))
    except jax.errors.JaxRuntimeError:
        if interrupt := _INTERRUPTS.pop(carrier.network, None):
            raise interrupt from None
        raise


@functools.partial(jax.jit, static_argnums=(0, 1))
def _average(carrier: Datagrams, rule: AverageModels, tree: Any, step: jax.Array) -> Any:
    average = StepExchange(carrier, key_data(0), step, state=())
    return rule.on_params(tree, (), average)[0]
