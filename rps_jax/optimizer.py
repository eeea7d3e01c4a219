"""The averaging rules as optax transformations: one changed line in an existing chain.

Gradient averaging comes first in a chain; RPS, which acts on the updated parameters, wraps the
whole of it:

    optax.chain(rps.optax_average_gradients(channel, "workers"), optax.sgd(0.1))
    rps.optax_average_models(optax.sgd(0.1), channel, "workers")

DiLoCo, which takes many local steps to an exchange, wraps the chain likewise:

    rps.optax_diloco(optax.adamw(1e-3), rps.Bernoulli(0.1), "workers", local_steps=30)

What skips steps on some workers, such as `optax.apply_if_finite`, goes inside of these: each
`update` is an exchange, in which every worker takes part. (Around them, devices would wait for a
worker that does not come.)

All keep key and step in their state, so that a checkpoint of the optimizer state resumes the same
drops; they are those of `make_train_step` with the same seed. `update` must run where `axis_name`
is bound; `init` may run anywhere.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rps_jax.axis import AxisName
from rps_jax.carrier import Carrier, MaskedCollectives
from rps_jax.channels import Channel
from rps_jax.checks import check_optimizer
from rps_jax.draw import Assignment
from rps_jax.keys import key_data
from rps_jax.rules import Rule, make_rule
from rps_jax.step_exchange import StepExchange, on_params

Start = Callable[[], tuple[jax.Array, Any]]
"""Returns the raw key of a run, and a carrier's state before the first exchange."""


class ExchangeState(NamedTuple):
    """What decides every future exchange; the state of `optax_average_gradients`.

    Attributes:
        key: uint32 `[2]`, the raw key of the run; raw, so that any checkpoint format can hold it.
        step: int32 scalar, steps so far.
        channel: this worker's channel state.
        memory: what the rule remembers, such as the state of an outer optimizer; `()` if nothing.
    """

    key: jax.Array
    step: jax.Array
    channel: Any
    memory: Any


class AverageModelsState(NamedTuple):
    """State of `optax_average_models` and of `optax_diloco`.

    Attributes:
        exchange: what decides every future exchange.
        inner: the state of the wrapped chain.
    """

    exchange: ExchangeState
    inner: Any


def optax_average_gradients(
    channel: Channel,
    axis_name: AxisName,
    *,
    seed: int | jax.Array = 0,
    assignment: Assignment = "random",
    num_workers: int | None = None,
    **options: Any,
) -> optax.GradientTransformation:
    """Averages gradients over a lossy network; to be placed first in a chain.

    Args:
        channel: where drops come from.
        axis_name: the worker axis, or a tuple of axes.
        seed: decides the drops, together with the step; the same on every worker.
        assignment: "random" draws the blocks' servers anew at each step, "fixed" keeps them.
        num_workers: needed only by a channel with state, which may depend on it.
        options: fields of `rules.AverageGradients`, such as `on_miss`: what a worker applies where
            no average arrived, its "own" gradient, "zero", or the "stale" average before.

    Returns:
        A `GradientTransformation` with an `ExchangeState`.

    Raises:
        TypeError: something else than a channel.
        ValueError: an unknown `assignment` or option.
    """
    carrier = MaskedCollectives(channel, axis_name, assignment)
    start = functools.partial(_start, channel, seed, num_workers)
    return average_gradients_over(carrier, start, **options)


def average_gradients_over(
    carrier: Carrier, start: Start, **options: Any
) -> optax.GradientTransformation:
    """Averages gradients over any carrier; see `optax_average_gradients`."""
    rule = make_rule("gradient-averaging", **options)

    def init(params: Any) -> ExchangeState:
        return _begin(start, rule, params)

    def update(updates: Any, state: ExchangeState, params: Any = None) -> tuple[Any, ExchangeState]:
        del params
        average = _exchange(carrier, state)
        updates, memory = rule.on_gradients(updates, state.memory, average)
        return updates, _after(state, average, memory)

    return optax.GradientTransformation(init, update)


def optax_average_models(
    optimizer: optax.GradientTransformation,
    channel: Channel,
    axis_name: AxisName,
    *,
    seed: int | jax.Array = 0,
    assignment: Assignment = "random",
    num_workers: int | None = None,
    **options: Any,
) -> optax.GradientTransformationExtraArgs:
    """RPS around an optimizer: its local step, then the average of the workers' models.

    `optax.apply_updates(params, updates)` then gives what `average_models` gives of the locally
    updated parameters, up to a rounding of the parameters before the step; coordinates that were
    missed are bit for bit the worker's own. An update can only be added: unlike `average_models`,
    it cannot bring back a worker whose parameters are no longer finite.

    Args:
        optimizer: the whole chain that makes the local step. Its state is not averaged: one with a
            copy of the model, such as `optax.contrib.schedule_free`, drifts apart without bound.
        channel: where drops come from.
        axis_name: the worker axis, or a tuple of axes.
        seed: decides the drops, together with the step; the same on every worker.
        assignment: "random" draws the blocks' servers anew at each step, "fixed" keeps them.
        num_workers: needed only by a channel with state, which may depend on it.
        options: fields of `rules.AverageModels`, such as `local_steps`, `server` and `on_miss`; or
            `algorithm`, another rule that averages models after the local step over a lossy
            network, or its name, and fields of that.

    Returns:
        A `GradientTransformationExtraArgs` with an `AverageModelsState`; its `update` needs
        `params`.

    Raises:
        TypeError: something else than an optimizer or a channel.
        ValueError: an unknown `assignment` or option, or a rule of another kind.
    """
    carrier = MaskedCollectives(channel, axis_name, assignment)
    start = functools.partial(_start, channel, seed, num_workers)
    return average_models_over(carrier, start, optimizer, **options)


def optax_diloco(
    optimizer: optax.GradientTransformation,
    channel: Channel,
    axis_name: AxisName,
    *,
    seed: int | jax.Array = 0,
    assignment: Assignment = "random",
    num_workers: int | None = None,
    **options: Any,
) -> optax.GradientTransformationExtraArgs:
    """DiLoCo around an optimizer: local steps and, every so many, one of the outer optimizer.

    `optax.apply_updates(params, updates)` gives what a step of `make_train_step` gives with
    `algorithm="diloco"`, up to a rounding of the parameters before the step.

    Args:
        optimizer: the whole chain that makes the local step.
        channel: where drops come from.
        axis_name: the worker axis, or a tuple of axes.
        seed: decides the drops, together with the step; the same on every worker.
        assignment: "random" draws the blocks' servers anew at each step, "fixed" keeps them.
        num_workers: needed only by a channel with state, which may depend on it.
        options: fields of `rules.DiLoCo`, such as `local_steps`, `fragments` and `outer`, any
            optax optimizer.

    Returns:
        As `optax_average_models`.

    Raises:
        TypeError, ValueError: as `optax_average_models`.
    """
    carrier = MaskedCollectives(channel, axis_name, assignment)
    start = functools.partial(_start, channel, seed, num_workers)
    return average_models_over(carrier, start, optimizer, algorithm="diloco", **options)


def average_models_over(
    carrier: Carrier,
    start: Start,
    optimizer: optax.GradientTransformation,
    algorithm: str | Rule = "rps",
    **options: Any,
) -> optax.GradientTransformationExtraArgs:
    """A rule of models around an optimizer, over any carrier; see `optax_average_models`."""
    check_optimizer("optimizer", optimizer)
    rule = make_rule(algorithm, **options)
    of_models = type(rule).on_gradients is Rule.on_gradients
    if not (of_models and rule.lossy and not rule.overlaps):
        raise ValueError(
            f"algorithm={algorithm!r}: expected rps, diloco or another rule that averages models "
            "after the local step over a lossy network"
        )
    inner = optax.with_extra_args_support(optimizer)

    def init(params: Any) -> AverageModelsState:
        return AverageModelsState(_begin(start, rule, params), inner.init(params))

    def update(
        updates: Any, state: AverageModelsState, params: Any = None, **extra_args: Any
    ) -> tuple[Any, AverageModelsState]:
        updates, inner_state, local = _local_step(inner, updates, state.inner, params, extra_args)
        before = state.exchange
        average = _exchange(carrier, before)
        new, memory = on_params(rule, local, before.memory, average)
        updates = _updates_to(new, params, updates, local)
        return updates, AverageModelsState(_after(before, average, memory), inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def _local_step(
    inner: optax.GradientTransformationExtraArgs,
    updates: Any,
    state: Any,
    params: Any,
    extra_args: Mapping[str, Any],
) -> tuple[Any, Any, Any]:
    """Returns the local step of an optimizer, its state, and the parameters after the step."""
    if params is None:
        raise ValueError("params=None: expected update(grads, state, params), for models")
    updates, state = inner.update(updates, state, params, **extra_args)
    # What was missed is told by comparison with this: the barrier keeps the compiler from computing
    # it twice, rounded differently. One a leaf, as JAX takes all that pass one for varying alike.
    local = jax.tree.map(jax.lax.optimization_barrier, optax.apply_updates(params, updates))
    return updates, state, local


def _updates_to(new: Any, params: Any, updates: Any, local: Any) -> Any:
    """Returns what to add to the parameters, for the new ones: where nothing came, the local step.

    Args:
        new: parameters after the exchange.
        params: those before the local step.
        updates: the local step.
        local: parameters after it.
    """

    def step(new: Any, param: Any, update: Any, mine: Any) -> Any:
        # Narrow updates could not say where the others are.
        dtype = jnp.promote_types(update.dtype, param.dtype)
        return jnp.where(new == mine, update.astype(dtype), (new - param).astype(dtype))

    return jax.tree.map(step, new, params, updates, local)


def _start(
    channel: Channel, seed: int | jax.Array, num_workers: int | None
) -> tuple[jax.Array, Any]:
    if num_workers is None and jax.tree.leaves(channel.init(1)):
        raise ValueError(
            f"num_workers=None: expected the number of workers, for {type(channel).__name__} keeps "
            "a state that may depend on it"
        )
    return key_data(seed), channel.init(num_workers or 1)


def _begin(start: Start, rule: Rule, params: Any) -> ExchangeState:
    key, channel = start()
    return ExchangeState(key, jnp.int32(0), channel, rule.init(params))


def _exchange(carrier: Carrier, state: ExchangeState) -> StepExchange:
    if jnp.shape(state.key) != (2,):
        raise ValueError(
            f"state.key has shape {jnp.shape(state.key)}: expected (2,), that of one worker; a "
            "block of a shard_map keeps its leading axis"
        )
    return StepExchange(carrier, state.key, state.step, state.channel)


def _after(state: ExchangeState, average: StepExchange, memory: Any) -> ExchangeState:
    return ExchangeState(state.key, state.step + 1, average.state, memory)
