"""All that is random in one exchange: what arrives, and which worker serves which block."""

from typing import Any, Literal

import jax
import jax.numpy as jnp

from rps_jax.axis import AxisName, axis_size
from rps_jax.channel import Channel, Delivery
from rps_jax.keys import portable

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
) -> tuple[Delivery, jax.Array | int, Any]:
    """Draws all that is random in the exchange of one step: what arrives, and who serves what.

    A pure function of (channel, state, key, step): the same on any placement of the workers.

    Args:
        channel: where loss comes from.
        state: this worker's channel state.
        key: the key of the whole run, the same on every worker.
        step: int32 scalar, the number of this step.
        axis_name: the worker axis, or a tuple of axes.
        assignment: "random" draws anew at each step which worker serves which block; "fixed" has
            worker j serve block j always.

    Returns:
        `(delivery, shift, state)`: the first two are what `average_models` takes, the last is the
        channel state for the next step.

    Raises:
        ValueError: an unbound axis, or an unknown assignment.
    """
    check_assignment(assignment)
    num_workers = axis_size(axis_name)
    channel_key, shift_key = jax.random.split(jax.random.fold_in(portable(key), step))
    delivery, state = channel.sample(state, channel_key, jax.lax.axis_index(axis_name), num_workers)
    # A uniform cyclic shift makes the server of every single block uniform over the workers, which
    # is all that the analysis of the paper needs: each block is analysed by itself.
    if assignment == "fixed":
        return delivery, 0, state
    return delivery, jax.random.randint(shift_key, (), 0, num_workers, jnp.int32), state
