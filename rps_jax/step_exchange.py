"""The exchange of one step, as its rule calls it, and what a worker sees of it."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rps_jax.averaging import sent_or_last
from rps_jax.axis import as_own
from rps_jax.carrier import Carrier
from rps_jax.delivery import Delivery, in_packets, with_own
from rps_jax.draw import rule_key
from rps_jax.keys import wrap_key
from rps_jax.metrics import count_incoming, fraction_of
from rps_jax.rules import Rule
from rps_jax.servers import RECEIVED, Server
from rps_jax.train_state import Arrivals, StepMetrics, TrainState


class Seen(NamedTuple):
    """What one worker saw of an exchange.

    Attributes:
        exchanges: int32 scalar, 1.
        arrived: int32 `[2]`, how many messages (or packets) of others reached it in each phase.
        sent: int32 scalar, how many were sent to it in each.
        wait: float32 `[num_workers]`, how long it waited, in a row of zeros; None if nobody says.
        arrivals: its part of what is recorded; None if nothing is.
    """

    exchanges: jax.Array
    arrived: jax.Array
    sent: jax.Array
    wait: jax.Array | None
    arrivals: Arrivals | None


class _Together(NamedTuple):
    """What is averaged in one exchange; errors have its names."""

    params: Any
    model_state: Any


@dataclasses.dataclass
class StepExchange:
    """The exchange of one step, as its rule calls it.

    Attributes:
        carrier: moves the blocks.
        key: uint32 `[2]`, that of the run, raw: a cond under vmap selects what its branches share,
            and JAX takes a typed key for used then.
        step: its number.
        state: of the carrier.
        alongside: what is averaged together with the tree that the rule gives.
        links: what is counted; `()` if nothing.
        sent: what the servers have of the model state; `()` if they keep nothing.
        record: whether `seen` has the arrivals.
        number: of the exchange, where the network numbers them itself; None for that of the step.
        seen: what arrived; None before the exchange.
        worker: index of the worker.
    """

    carrier: Carrier
    key: jax.Array
    step: jax.Array
    state: Any
    alongside: Any = ()
    links: Any = ()
    sent: Any = ()
    record: bool = False
    number: jax.Array | None = None
    seen: Seen | None = dataclasses.field(default=None, init=False)
    _delivery: Delivery | None = dataclasses.field(default=None, init=False)

    def __post_init__(self) -> None:
        self.worker = self.carrier.worker()

    @classmethod
    def of_step(
        cls, carrier: Carrier, state: TrainState, alongside: Any, record: bool
    ) -> "StepExchange":
        """Returns the exchange of the step that a state is at; `alongside` as above."""
        channel_state, links = state.channel_state, state.links
        return cls(
            carrier, state.key, state.step, channel_state, alongside, links, state.sent, record
        )

    def __call__(self, tree: Any, otherwise: Any, server: Server = RECEIVED) -> Any:
        """Averages a tree; see `rps_jax.rules.Average`."""
        if self._delivery is not None:
            raise ValueError("average() was called twice: expected one exchange a step")
        keeps = server.last is not None and bool(jax.tree.leaves(self.alongside))
        if server.last is not None:
            # Of nothing, servers have nothing, in the same structure.
            last = _Together(server.last, self.sent if keeps else self.alongside)
            server = dataclasses.replace(server, last=last)
        both, fallback = (_Together(each, self.alongside) for each in (tree, otherwise))
        number = self.step if self.number is None else self.number
        with jax.named_scope("exchange"):
            (tree, self.alongside), self._delivery, self.state = self.carrier.exchange(
                self.state, wrap_key(self.key), number, both, fallback, server
            )
        if keeps:
            self.sent = sent_or_last(both, server.last, self._delivery, self.worker).model_state
        num_workers = len(self._delivery.sent)
        heard = with_own(in_packets(self._delivery, num_workers), self.worker)
        self.seen = _seen_by(self.worker, heard, self.record)
        if self.links:
            self.links = self.links.add(heard)
        return tree

    def sent_or_last(self, tree: Any, last: Any) -> Any:
        """Returns what servers have of this worker; see `rps_jax.rules.Average`."""
        both, before = (_Together(each, self.alongside) for each in (tree, last))
        return sent_or_last(both, before, self.delivery, self.worker).params

    @property
    def delivery(self) -> Delivery:
        """What arrived; see `rps_jax.rules.Average`."""
        assert self._delivery is not None  # as it is to be asked for afterwards
        return self._delivery

    @property
    def rule_key(self) -> jax.Array:
        """A key for what a rule draws; see `rps_jax.rules.Average`."""
        return rule_key(wrap_key(self.key), self.step)


def on_params(rule: Rule, params: Any, memory: Any, average: StepExchange) -> tuple[Any, Any]:
    """Returns what a rule makes of the model after the local step, if it exchanges in this step."""
    numbers_exchanges = average.carrier.numbers_exchanges
    if rule.in_turn and numbers_exchanges:
        raise ValueError(
            f"{rule}: expected whole models, over a network whose workers need not be in the same "
            "exchange"
        )
    if rule.every == 1:
        return rule.on_params(params, memory, average)
    if average.seen is not None:
        raise ValueError(f"every={rule.every}: expected 1, for {rule} averages gradients")

    def values(params: Any, memory: Any, of: StepExchange) -> Any:
        return as_own((params, memory, of.state, of.alongside, of.links, of.sent), average.worker)

    def exchange(
        params: Any, memory: Any, state: Any, alongside: Any, links: Any, sent: Any
    ) -> Any:
        number = average.step // rule.every if numbers_exchanges else None
        changed = {"state": state, "alongside": alongside, "links": links, "sent": sent}
        traced = dataclasses.replace(average, number=number, **changed)
        params, memory = rule.on_params(params, memory, traced)
        return *values(params, memory, traced), as_own(traced.seen, average.worker)

    def skip(*before: Any) -> Any:
        return *before, as_own(nothing, average.worker)

    before = values(params, memory, average)
    *_, seen = jax.eval_shape(exchange, *before)
    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), seen)
    # All workers are at the same step: where a device has one, nothing is sent in the others.
    now = (average.step + 1) % rule.every == 0
    params, memory, *after, average.seen = jax.lax.cond(now, exchange, skip, *before)
    average.state, average.alongside, average.links, average.sent = after
    return params, memory


def metrics_of(carrier: Carrier, loss: jax.Array, seen: Seen | None) -> StepMetrics:
    """Returns the metrics of a step from one worker's loss and what it saw of the exchange."""
    if seen is None:
        seen = Seen(jnp.int32(0), jnp.zeros(2, jnp.int32), jnp.int32(0), None, None)
    # The greatest wait of all workers, by a sum: each adds a row of zeros with its own.
    total, workers, seen = carrier.sum((loss.astype(jnp.float32), 1, seen))
    assert seen is not None
    arrivals = seen.arrivals
    return StepMetrics(
        loss=total / workers,
        delivered=fraction_of(seen.arrived, seen.sent, seen.exchanges > 0),
        exchange_seconds=None if seen.wait is None else seen.wait.max(),
        arrivals=arrivals and arrivals._replace(shift=arrivals.shift // workers),
    )


def _seen_by(worker: jax.Array, delivery: Delivery, record: bool) -> Seen:
    n = len(delivery.received)
    arrived, sent = count_incoming(delivery)
    wait = arrivals = None
    if delivery.seconds is not None:
        wait = jnp.zeros(n, jnp.float32).at[worker].set(delivery.seconds)
    if record:
        masks = jnp.stack([delivery.received, delivery.gathered]).reshape(2, n, -1)
        packed = jnp.packbits(masks, axis=-1)
        of_all = jnp.zeros((2, n, n, packed.shape[-1]), jnp.uint8).at[:, :, worker].set(packed)
        shift = jnp.int32(0) if delivery.shift is None else delivery.shift
        arrivals = Arrivals(of_all, shift)
    return Seen(jnp.int32(1), arrived, jnp.int32(sent), wait, arrivals)
