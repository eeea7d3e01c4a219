"""One training step of one worker: a local step of any optax optimizer, then an exchange."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rps_jax import keys
from rps_jax.averaging import sent_or_last
from rps_jax.axis import AxisName
from rps_jax.carrier import AllReduce, Carrier, MaskedCollectives
from rps_jax.channels import Channel
from rps_jax.delivery import Delivery
from rps_jax.draw import Assignment
from rps_jax.links import LinkCounts
from rps_jax.metrics import DeliveredFraction, count_incoming, fraction_of
from rps_jax.rules import Rule, make_rule
from rps_jax.servers import RECEIVED, Server

ModelStatePolicy = Literal["exchange", "local"]
MODEL_STATE_POLICIES: tuple[ModelStatePolicy, ...] = ("exchange", "local")

LossFn = Callable[[Any, Any, Any, jax.Array], tuple[jax.Array, Any]]
"""`loss_fn(params, model_state, batch, key) -> (loss, model_state)`, of one worker."""


class TrainState(NamedTuple):
    """All that one worker carries from step to step; with its data, all that a resume needs.

    Attributes:
        step: int32 scalar, steps taken; the same on every worker.
        key: uint32 `[2]`, the raw key of the run; the same on every worker.
        params: the worker's model x_i.
        model_state: what the model keeps besides, such as batch-norm statistics.
        opt_state: the worker's optimizer state; never exchanged.
        channel_state: the worker's view of the channel's memory, or its carrier's.
        rule_state: what the rule remembers.
        links: the `LinkCounts` of the worker; `()` where nothing is counted.
    """

    step: jax.Array
    key: jax.Array
    params: Any
    model_state: Any
    opt_state: Any
    channel_state: Any
    rule_state: Any = ()
    links: Any = ()


class Arrivals(NamedTuple):
    """What arrived between all workers in one exchange: an iteration of a `Trace`.

    Attributes:
        arrived: uint8 `[2, num_workers, num_workers, ceil(packets / 8)]`, by phase, source and
            destination, the packets packed as in `Trace.arrived`.
        shift: int32 scalar, as in `Trace.shifts`.
    """

    arrived: jax.Array
    shift: jax.Array


class StepMetrics(NamedTuple):
    """What one step reports; over a named axis, the same on every worker.

    Attributes:
        loss: float32 scalar, mean over the workers of their mini-batch losses before the step.
        delivered: the share of messages that arrived; 0 in a step without an exchange.
        exchange_seconds: float32 scalar, how long the slowest worker waited; None where the channel
            simulates no delays.
        arrivals: what arrived, of all workers; None unless it was asked for.
    """

    loss: jax.Array
    delivered: DeliveredFraction
    exchange_seconds: jax.Array | None = None
    arrivals: Arrivals | None = None


def init_train_state(
    params: Any,
    model_state: Any,
    optimizer: optax.GradientTransformation,
    channel: Channel | Carrier,
    num_workers: int,
    seed: int | jax.Array = 0,
    *,
    algorithm: str | Rule = "rps",
    count_links: bool = False,
    **options: Any,
) -> TrainState:
    """Returns the state in which every worker starts: the same model, no step taken.

    Args:
        params: the initial model.
        model_state: the initial model state; `()` or `{}` where there is none.
        optimizer: the optimizer of the step.
        channel: the channel of `make_train_step`, or the carrier of `make_step`.
        num_workers: how many workers take part.
        seed: decides all that is random in the steps, the drops included.
        algorithm: the rule of the step, or its name; it decides what is remembered.
        count_links: whether the steps count what arrives on each link.
        options: of the rule, where it is given by its name.

    Raises:
        ValueError: an unknown algorithm or option.
    """
    return TrainState(
        step=jnp.int32(0),
        key=keys.key_data(seed),
        params=params,
        model_state=model_state,
        opt_state=optimizer.init(params),
        channel_state=channel.init(num_workers),
        rule_state=make_rule(algorithm, **options).init(params),
        links=LinkCounts.zero(num_workers) if count_links else (),
    )


def make_train_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    channel: Channel,
    axis_name: AxisName,
    *,
    algorithm: str | Rule = "rps",
    assignment: Assignment = "random",
    model_state_policy: ModelStatePolicy = "exchange",
    **options: Any,
) -> Callable[[TrainState, Any], tuple[TrainState, StepMetrics]]:
    """Makes the step of one worker, to be mapped over the worker axis.

    Args:
        loss_fn: `(params, model_state, batch, key) -> (loss, model_state)`, of one worker; its key
            differs from worker to worker and from step to step.
        optimizer: any optax optimizer; makes the local step.
        channel: where drops come from.
        axis_name: the worker axis, or a tuple of axes.
        algorithm: a rule, or a name in `rps_jax.rules.RULES`: "rps" averages models over the lossy
            network, "gradient-averaging" gradients; "all-reduce" averages models reliably; "local"
            does not communicate.
        assignment: "random" draws the blocks' servers anew at each step, "fixed" keeps them.
        model_state_policy: "exchange" averages the model state in the same exchange as the
            params or gradients, "local" leaves it to each worker.
        options: of the rule, where it is given by its name, such as `on_miss`.

    Returns:
        `train_step(state, batch) -> (state, metrics)`, of one worker.

    Raises:
        ValueError: an unknown algorithm, option, policy or assignment.
    """
    rule = make_rule(algorithm, **options)
    network = MaskedCollectives if rule.lossy else AllReduce
    carrier = network(channel, axis_name, assignment)
    return make_step(loss_fn, optimizer, rule, carrier, model_state_policy=model_state_policy)


def make_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    rule: Rule,
    carrier: Carrier,
    *,
    model_state_policy: ModelStatePolicy = "exchange",
    record: bool = False,
) -> Callable[[TrainState, Any], tuple[TrainState, StepMetrics]]:
    """Makes the step of one worker whose exchanges go by any carrier; see `make_train_step`.

    Args:
        loss_fn: as of `make_train_step`.
        optimizer: any optax optimizer; makes the local step.
        rule: what is averaged.
        carrier: moves the blocks.
        model_state_policy: as of `make_train_step`.
        record: whether the metrics have `arrivals`: n x n masks on every worker.

    Returns:
        `train_step(state, batch) -> (state, metrics)`, of one worker.

    Raises:
        ValueError: an unknown policy.
    """
    if model_state_policy not in MODEL_STATE_POLICIES:
        raise ValueError(
            f"model_state_policy={model_state_policy!r}: expected one of "
            f"{', '.join(MODEL_STATE_POLICIES)}"
        )

    if rule.overlaps:
        from rps_jax.overlapped_step import OverlappedStep  # Which is made of what is here.

        return OverlappedStep(loss_fn, optimizer, rule, carrier, model_state_policy, record)

    def train_step(state: TrainState, batch: Any) -> tuple[TrainState, StepMetrics]:
        key = keys.wrap_key(state.key)
        loss, model_state, grads = local_gradients(loss_fn, carrier, state, batch)
        alongside = model_state if model_state_policy == "exchange" else ()
        remembered = state.channel_state, alongside, state.links
        average = StepExchange(carrier, key, state.step, record, *remembered)
        grads, memory = rule.on_gradients(grads, state.rule_state, average)
        with jax.named_scope("local_step"):
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
        params, memory = on_params(rule, params, memory, average, state.step)

        state = TrainState(
            step=state.step + 1,
            key=state.key,
            params=params,
            model_state=average.alongside if model_state_policy == "exchange" else model_state,
            opt_state=opt_state,
            channel_state=average.state,
            rule_state=memory,
            links=average.links,
        )
        return state, metrics_of(carrier, loss, average.seen)

    return train_step


def local_gradients(
    loss_fn: LossFn, carrier: Carrier, state: TrainState, batch: Any
) -> tuple[jax.Array, Any, Any]:
    """Returns the loss of one worker, its model state after the batch, and its gradients."""
    _, key = keys.split(keys.wrap_key(state.key))
    for part in (state.step, carrier.worker()):
        key = jax.random.fold_in(key, part)
    gradient = jax.value_and_grad(loss_fn, has_aux=True)
    with jax.named_scope("local_step"):
        (loss, model_state), grads = gradient(state.params, state.model_state, batch, key)
    return loss, model_state, grads


def on_params(
    rule: Rule, params: Any, memory: Any, average: "StepExchange", step: jax.Array
) -> tuple[Any, Any]:
    """Returns what a rule makes of the model after the local step, if it exchanges in this step."""
    if rule.every == 1:
        return rule.on_params(params, memory, average)

    def of_worker(values: Any) -> Any:
        # In a shard_map, what is the same on all workers is of another type than what is not.
        return jax.tree.map(lambda x: jnp.where(average.worker < 0, jnp.zeros_like(x), x), values)

    def exchange(params: Any, memory: Any, *remembered: Any) -> Any:
        anew = average.anew(*remembered)
        params, memory = rule.on_params(params, memory, anew)
        return of_worker((params, memory, *anew.remembered, anew.seen))

    def skip(*before: Any) -> Any:
        return *before, of_worker(nothing)

    before = of_worker((params, memory, *average.remembered))
    *_, seen = jax.eval_shape(exchange, *before)
    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), seen)
    # All workers are at the same step: where a device has one, nothing is sent in the others.
    now = (step + 1) % rule.every == 0
    params, memory, *after, average.seen = jax.lax.cond(now, exchange, skip, *before)
    average.state, average.alongside, average.links = after
    return params, memory


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


class StepExchange:
    """The exchange of one step, as its rule calls it.

    Attributes:
        worker: index of the worker.
        state: of the carrier.
        alongside: what is averaged together with the tree that the rule gives.
        links: what is counted; `()` if nothing.
        seen: what arrived; None before the exchange.
    """

    def __init__(
        self,
        carrier: Carrier,
        key: jax.Array,
        step: jax.Array,
        record: bool,
        state: Any,
        alongside: Any,
        links: Any,
    ) -> None:
        self._carrier, self._key, self._step, self._record = carrier, key, step, record
        self.state, self.alongside, self.links = state, alongside, links
        self.worker = carrier.worker()
        self.seen: Seen | None = None
        self._delivery: Delivery | None = None

    @property
    def remembered(self) -> tuple[Any, Any, Any]:
        """What an exchange changes beside the tree."""
        return self.state, self.alongside, self.links

    def anew(self, *remembered: Any) -> "StepExchange":
        """Returns the same exchange before it has taken place, of other values."""
        return StepExchange(self._carrier, self._key, self._step, self._record, *remembered)

    def __call__(self, tree: Any, otherwise: Any, server: Server = RECEIVED) -> Any:
        """Averages a tree; see `rps_jax.rules.Average`."""
        if self._delivery is not None:
            raise ValueError("average() was called twice: expected one exchange a step")
        if server.last is not None:
            server = dataclasses.replace(server, last=(server.last, self.alongside))
        pair, fallback = (tree, self.alongside), (otherwise, self.alongside)
        with jax.named_scope("exchange"):
            (tree, self.alongside), self._delivery, self.state = self._carrier.exchange(
                self.state, self._key, self._step, pair, fallback, server
            )
        self.seen = _seen_by(self.worker, self._delivery, self._record)
        if self.links:
            self.links = self.links.add(self._delivery)
        return tree

    def sent_or_last(self, tree: Any, last: Any) -> Any:
        """Returns what servers have of this worker; see `rps_jax.rules.Average`."""
        assert self._delivery is not None  # as it is to be called afterwards
        pair, before = (tree, self.alongside), (last, self.alongside)
        return sent_or_last(pair, before, self._delivery, self.worker)[0]


def _seen_by(worker: jax.Array, delivery: Delivery, record: bool) -> Seen:
    n = len(delivery.received)
    arrived, sent = count_incoming(delivery, n)
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
