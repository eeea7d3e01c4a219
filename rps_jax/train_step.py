"""One training step of one worker: a local step of any optax optimizer, then an exchange."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rps_jax.averaging import ON_MISS, OnMiss, all_reduce, average_or_else, gradient_on_miss
from rps_jax.axis import AxisName, axis_names
from rps_jax.channel import Bernoulli, Channel, Delivery, Lossless
from rps_jax.draw import ASSIGNMENTS, Assignment, draw_exchange
from rps_jax.keys import key_data, wrap_key
from rps_jax.metrics import DeliveredFraction, delivered_fraction

Algorithm = Literal["rps", "gradient-averaging", "all-reduce", "local"]
ALGORITHMS: tuple[Algorithm, ...] = ("rps", "gradient-averaging", "all-reduce", "local")

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
        channel_state: the worker's view of the channel's memory.
    """

    step: jax.Array
    key: jax.Array
    params: Any
    model_state: Any
    opt_state: Any
    channel_state: Any


class StepMetrics(NamedTuple):
    """What one step reports; the same on every worker.

    Attributes:
        loss: float32 scalar, mean over the workers of their mini-batch losses before the step.
        delivered: the share of messages that arrived.
    """

    loss: jax.Array
    delivered: DeliveredFraction


def init_train_state(
    params: Any,
    model_state: Any,
    optimizer: optax.GradientTransformation,
    channel: Channel,
    num_workers: int,
    seed: int | jax.Array = 0,
) -> TrainState:
    """Returns the state in which every worker starts: the same model, no step taken.

    Args:
        params: the initial model.
        model_state: the initial model state; `()` or `{}` where there is none.
        optimizer: the optimizer of `make_train_step`.
        channel: the channel of `make_train_step`.
        num_workers: how many workers take part.
        seed: decides all that is random in the steps, the losses included.
    """
    return TrainState(
        step=jnp.int32(0),
        key=key_data(seed),
        params=params,
        model_state=model_state,
        opt_state=optimizer.init(params),
        channel_state=channel.init(num_workers),
    )


def make_train_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    channel: Channel,
    axis_name: AxisName,
    *,
    algorithm: Algorithm = "rps",
    on_miss: OnMiss = "own",
    assignment: Assignment = "random",
    model_state_policy: ModelStatePolicy = "exchange",
) -> Callable[[TrainState, Any], tuple[TrainState, StepMetrics]]:
    """Makes the step of one worker, to be mapped over the worker axis.

    Args:
        loss_fn: `(params, model_state, batch, key) -> (loss, model_state)`, of one worker; its key
            differs from worker to worker and from step to step.
        optimizer: any optax optimizer; makes the local step.
        channel: where loss comes from.
        axis_name: the worker axis, or a tuple of axes.
        algorithm: "rps" averages models over the lossy network, "gradient-averaging" gradients;
            "all-reduce" averages models reliably; "local" does not communicate.
        on_miss: with gradient averaging, what stands in for an average that did not arrive.
        assignment: "random" draws the blocks' servers anew at each step, "fixed" keeps them.
        model_state_policy: "exchange" averages the model state in the same exchange as the
            params or gradients, "local" leaves it to each worker.

    Returns:
        `train_step(state, batch) -> (state, metrics)`, of one worker.

    Raises:
        ValueError: an unknown algorithm, policy, `on_miss` or `assignment`.
    """
    for name, value, known in (
        ("algorithm", algorithm, ALGORITHMS),
        ("on_miss", on_miss, ON_MISS),
        ("assignment", assignment, ASSIGNMENTS),
        ("model_state_policy", model_state_policy, MODEL_STATE_POLICIES),
    ):
        if value not in known:
            raise ValueError(f"{name}={value!r}: expected one of {', '.join(known)}")

    # Reliable, and silent: said as channels, so that the metrics tell the truth of them too.
    extremes: dict[str, Channel] = {"all-reduce": Lossless(), "local": Bernoulli(drop_rate=1.0)}
    network = extremes.get(algorithm, channel)

    def average_tree(tree: Any, otherwise: Any, delivery: Delivery, shift: Any) -> Any:
        if algorithm == "all-reduce":
            return all_reduce(tree, axis_name)
        return average_or_else(tree, otherwise, delivery, axis_name, shift)

    def train_step(state: TrainState, batch: Any) -> tuple[TrainState, StepMetrics]:
        exchange_key, loss_key = jax.random.split(wrap_key(state.key))
        loss_key = jax.random.fold_in(loss_key, state.step)
        loss_key = jax.random.fold_in(loss_key, jax.lax.axis_index(axis_name))
        delivery, shift, channel_state = draw_exchange(
            network, state.channel_state, exchange_key, state.step, axis_name, assignment
        )

        def average(tree: Any, otherwise: Any, model_state: Any) -> tuple[Any, Any]:
            """Averages a tree, and with it the model state where the policy says so."""
            if model_state_policy == "local":
                return average_tree(tree, otherwise, delivery, shift), model_state
            return average_tree((tree, model_state), (otherwise, model_state), delivery, shift)

        gradient = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, model_state), grads = gradient(state.params, state.model_state, batch, loss_key)
        if algorithm == "gradient-averaging":
            grads, model_state = average(grads, gradient_on_miss(grads, on_miss), model_state)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        if algorithm in ("rps", "all-reduce"):
            params, model_state = average(params, params, model_state)

        metrics = StepMetrics(
            loss=jax.lax.pmean(loss.astype(jnp.float32), axis_names(axis_name)),
            delivered=delivered_fraction(delivery, axis_name),
        )
        state = TrainState(
            step=state.step + 1,
            key=state.key,
            params=params,
            model_state=model_state,
            opt_state=opt_state,
            channel_state=channel_state,
        )
        return state, metrics

    return train_step
