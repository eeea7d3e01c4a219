"""All that is random in one exchange: what arrives, and which worker serves which block."""

from typing import Any, Literal

import jax
import jax.numpy as jnp

from rps_jax import keys
from rps_jax.axis import AxisName, axis_names, axis_size
from rps_jax.channels import Channel
from rps_jax.checks import check_channel, check_integer
from rps_jax.delivery import Delivery

Assignment = Literal["random", "fixed"]
ASSIGNMENTS: tuple[Assignment, ...] = ("random", "fixed")


def check_assignment(assignment: str) -> None:
    """Raises `ValueError` for an unknown assignment."""
    if assignment not in ASSIGNMENTS:
        raise ValueError(f"assignment={assignment!r}: expected one of {', '.join(ASSIGNMENTS)}")


def draw_exchange(
    channel: Channel,
    state: Any,
    key: jax.Array,
    step: jax.Array | int,
    axis_name: AxisName,
    assignment: Assignment = "random",
) -> tuple[Delivery, Any]:
    """Draws all that is random in the exchange of one step: what arrives, and who serves what.

    A pure function of (channel, state, key, step): the same on any placement of the workers, in the
    train step and in the optax forms, for the key of the same seed.

    Args:
        channel: where drops come from.
        state: this worker's channel state.
        key: the key of the whole run, the same on every worker.
        step: int32 scalar, the number of this step.
        axis_name: the worker axis, or a tuple of axes.
        assignment: "random" draws anew at each step which worker serves which block; "fixed" has
            worker j serve block j always. A channel that says who did is believed: a `Trace`
            with shifts, or a combination of which a part says so.

    Returns:
        `(delivery, state)`: what `average_models` takes, and the channel state for the next step.

    Raises:
        TypeError: something else than a channel.
        ValueError: an unbound axis, an unknown assignment, a step that is no integer scalar, or a
            state of another channel or number of workers.
    """
    check_channel("channel", channel)
    check_assignment(assignment)
    check_integer("step", step)
    num_workers = axis_size(axis_name)
    _check_state(channel, state, num_workers)
    of_exchanges, _ = keys.split(keys.portable(key))  # The other half is for what is not exchanged.
    channel_key, shift_key = keys.split(jax.random.fold_in(of_exchanges, step))
    worker = jax.lax.axis_index(axis_names(axis_name))
    delivery, state = channel.sample(state, channel_key, worker, num_workers)
    # A uniform cyclic shift makes the server of every single block uniform over the workers, which
    # is all that the analysis of the paper needs: each block is analysed by itself.
    if assignment == "random" and delivery.shift is None:
        delivery = delivery._replace(shift=keys.randint(shift_key, num_workers))
    return delivery, state


def rule_key(key: jax.Array, step: jax.Array | int) -> jax.Array:
    """Returns the key of what a rule draws in the exchange of one step, apart from its drops.

    Args:
        key: the key of the whole run, the same on every worker.
        step: int32 scalar, the number of this step.
    """
    of_exchanges, _ = keys.split(keys.portable(key))
    return jax.random.fold_in(jax.random.fold_in(of_exchanges, step), 2)


def _check_state(channel: Channel, state: Any, num_workers: int) -> None:
    expected = jax.eval_shape(lambda: channel.init(num_workers))
    shapes, wanted = ([jnp.shape(x) for x in jax.tree.leaves(tree)] for tree in (state, expected))
    if shapes != wanted:
        raise ValueError(
            f"the state of {type(channel).__name__} has shapes {shapes}: expected {wanted}, those "
            f"of its init(num_workers={num_workers})"
        )
