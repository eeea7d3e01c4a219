"""What a worker carries from step to step, and what a step reports."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rps_jax import keys
from rps_jax.carrier import Carrier
from rps_jax.channels import Channel
from rps_jax.links import LinkCounts
from rps_jax.metrics import DeliveredFraction
from rps_jax.rules import Rule, make_rule
from rps_jax.rules.lossy import copied

ModelStatePolicy = Literal["exchange", "local"]
MODEL_STATE_POLICIES: tuple[ModelStatePolicy, ...] = ("exchange", "local")


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
        sent: what the servers have of the model state, where the rule has them keep it; else `()`.
    """

    step: jax.Array
    key: jax.Array
    params: Any
    model_state: Any
    opt_state: Any
    channel_state: Any
    rule_state: Any = ()
    links: Any = ()
    sent: Any = ()


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
        arrivals: what arrived, of all workers; None unless it was asked for. All zeros in a step
            without an exchange, which is no iteration of a `Trace`: leave it out.
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
    rule = make_rule(algorithm, **options)
    return TrainState(
        step=jnp.int32(0),
        key=keys.key_data(seed),
        params=params,
        model_state=model_state,
        opt_state=optimizer.init(params),
        channel_state=channel.init(num_workers),
        rule_state=rule.init(params),
        links=LinkCounts.zero(num_workers) if count_links else (),
        sent=copied(model_state) if rule.keeps_sent else (),
    )


def check_rule_state(rule: Rule, state: TrainState) -> None:
    """Raises `ValueError` if a state remembers what another rule or other options would."""

    def kind(tree: Any) -> Any:
        leaves = [(jnp.shape(leaf), str(jnp.result_type(leaf))) for leaf in jax.tree.leaves(tree)]
        return jax.tree.structure(tree), leaves

    if (found := kind(state.rule_state)) != kind(jax.eval_shape(rule.init, state.params)):
        raise ValueError(
            f"state.rule_state has leaves {found[1]}: expected those of {rule}, of "
            "init_train_state with the algorithm and the options of the step"
        )
