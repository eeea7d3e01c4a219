"""One training step of one worker: a local step of any optax optimizer, then an exchange."""

from collections.abc import Callable
from typing import Any

import jax
import optax

from rps_jax.axis import AxisName
from rps_jax.carrier import Carrier, make_carrier
from rps_jax.channels import Channel
from rps_jax.checks import check_optimizer
from rps_jax.draw import Assignment
from rps_jax.local_gradients import LossFn, local_gradients, local_updates
from rps_jax.overlapped_step import OverlappedStep
from rps_jax.rules import Rule, make_rule
from rps_jax.step_exchange import StepExchange, metrics_of, on_params
from rps_jax.train_state import (
    MODEL_STATE_POLICIES,
    ModelStatePolicy,
    StepMetrics,
    TrainState,
    check_rule_state,
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
        optimizer: any optax optimizer; makes the local step. It is given the loss and the gradients
            as `value` and `grad`, which some ask for, but no `value_fn`: line searches do not work.
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
    carrier = make_carrier(rule, channel, axis_name, assignment)
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
        optimizer: as of `make_train_step`.
        rule: what is averaged.
        carrier: moves the blocks.
        model_state_policy: as of `make_train_step`.
        record: whether the metrics have `arrivals`: n x n masks on every worker.

    Returns:
        `train_step(state, batch) -> (state, metrics)`, of one worker.

    Raises:
        TypeError: something else than an optimizer.
        ValueError: an unknown policy, or a rule that sends something over a reliable network alone
            and a carrier that is none; in the step, a state of another rule or of other options.
    """
    if model_state_policy not in MODEL_STATE_POLICIES:
        raise ValueError(
            f"model_state_policy={model_state_policy!r}: expected one of "
            f"{', '.join(MODEL_STATE_POLICIES)}"
        )

    check_optimizer("optimizer", optimizer)
    if carrier.lossy and not rule.lossy and jax.tree.leaves(rule.sends(0.0)):
        raise ValueError(
            f"carrier={carrier}: expected one that drops nothing, such as rps_jax.AllReduce, for "
            f"{rule}"
        )
    if rule.overlaps:
        return OverlappedStep(loss_fn, optimizer, rule, carrier, model_state_policy, record)

    def train_step(state: TrainState, batch: Any) -> tuple[TrainState, StepMetrics]:
        check_rule_state(rule, state)
        loss, model_state, grads = local_gradients(loss_fn, carrier, state, batch)
        alongside = model_state if model_state_policy == "exchange" else ()
        average = StepExchange.of_step(carrier, state, alongside, record)
        grads, memory = rule.on_gradients(grads, state.rule_state, average)
        updates, opt_state = local_updates(optimizer, state, loss, grads)
        with jax.named_scope("local_step"):
            params = optax.apply_updates(state.params, updates)
        params, memory = on_params(rule, params, memory, average)

        state = TrainState(
            step=state.step + 1,
            key=state.key,
            params=params,
            model_state=average.alongside if model_state_policy == "exchange" else model_state,
            opt_state=opt_state,
            channel_state=average.state,
            rule_state=memory,
            links=average.links,
            sent=average.sent,
        )
        return state, metrics_of(carrier, loss, average.seen)

    return train_step
