"""Who carries an exchange: the one seam between the rules and whatever moves the blocks.

A rule calls `average(tree, otherwise)`; a carrier is what makes that true for one worker. Here are
the carriers that simulate a network by collectives over a named axis, inside a compiled program.
Others may move the blocks by real messages: a carrier does not have to know what arrives before it
has.
"""

import dataclasses
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp

from rps_jax.averaging import all_reduce, average_or_else
from rps_jax.axis import AxisName, as_own, axis_names, axis_size
from rps_jax.channels import Channel
from rps_jax.checks import check_channel
from rps_jax.delivery import Delivery
from rps_jax.draw import Assignment, check_assignment, draw_exchange
from rps_jax.rules import Rule
from rps_jax.servers import RECEIVED, Server


class Carrier(Protocol):
    """Moves the blocks of one worker's exchanges; carriers inherit from it.

    Attributes:
        lossy: whether messages may be dropped.
        numbers_exchanges: whether the network numbers the exchanges itself, as workers need not be
            in the same: then `exchange` is given the number of this worker's, and not of its step.
    """

    lossy: ClassVar[bool] = True
    numbers_exchanges: ClassVar[bool] = False

    def init(self, num_workers: int) -> Any:
        """Returns one worker's state before the first exchange."""
        ...

    def worker(self) -> jax.Array:
        """Returns this worker's index, int32 scalar."""
        ...

    def exchange(
        self,
        state: Any,
        key: jax.Array,
        step: jax.Array,
        tree: Any,
        otherwise: Any,
        server: Server = RECEIVED,
    ) -> tuple[Any, Delivery, Any]:
        """Averages a pytree over the workers, block by block.

        Args:
            state: this worker's state.
            key: the key of the whole run, the same on every worker.
            step: int32 scalar, the number of this step.
            tree: this worker's pytree.
            otherwise: a pytree like it, of what stands in for an average that does not arrive.
            server: what servers make of what arrives.

        Returns:
            A pytree like `tree`, what arrived, and the state for the next exchange.
        """
        ...

    def sum(self, values: Any) -> Any:
        """Sums small values for the metrics: over all workers, or over this one where none waits.

        Args:
            values: a pytree of scalars and small arrays; of 1 comes the number of workers summed.
        """
        ...


@dataclasses.dataclass(frozen=True)
class MaskedCollectives(Carrier):
    """Collectives over a named axis, masked by what a channel says of every message.

    Attributes:
        channel: where drops come from.
        axis_name: the worker axis, or a tuple of axes, outermost first.
        assignment: "random" draws the blocks' servers anew at each step, "fixed" keeps them.

    Raises:
        TypeError: something else than a channel.
        ValueError: an unknown assignment.
    """

    channel: Channel
    axis_name: AxisName
    assignment: Assignment = "random"

    def __post_init__(self) -> None:
        check_channel("channel", self.channel)
        check_assignment(self.assignment)

    def init(self, num_workers: int) -> Any:
        """Returns the state of the channel."""
        return self.channel.init(num_workers)

    def worker(self) -> jax.Array:
        """Returns this worker's place on the axis."""
        axis_size(self.axis_name)  # Raises where the axis is not bound.
        return jax.lax.axis_index(axis_names(self.axis_name))

    def exchange(
        self,
        state: Any,
        key: jax.Array,
        step: jax.Array,
        tree: Any,
        otherwise: Any,
        server: Server = RECEIVED,
    ) -> tuple[Any, Delivery, Any]:
        """Averages through one masked reduce-scatter and all-gather; see `Carrier.exchange`."""
        delivery, state = draw_exchange(
            self.channel, state, key, step, self.axis_name, self.assignment
        )
        return (
            average_or_else(tree, otherwise, delivery, self.axis_name, server=server),
            delivery,
            state,
        )

    def sum(self, values: Any) -> Any:
        """Sums over the axis."""
        return jax.lax.psum(values, axis_names(self.axis_name))


@dataclasses.dataclass(frozen=True)
class AllReduce(MaskedCollectives):
    """The reliable network: one all-reduce, whatever the channel says."""

    lossy: ClassVar[bool] = False

    def exchange(
        self,
        state: Any,
        key: jax.Array,
        step: jax.Array,
        tree: Any,
        otherwise: Any,
        server: Server = RECEIVED,
    ) -> tuple[Any, Delivery, Any]:
        """Averages everything; see `Carrier.exchange`."""
        del key, step, otherwise, server
        everything = jnp.ones(axis_size(self.axis_name), bool)
        average = as_own(all_reduce(tree, self.axis_name), self.worker())
        return average, Delivery(*[everything] * 3), state


def make_carrier(
    rule: Rule, channel: Channel, axis_name: AxisName, assignment: Assignment = "random"
) -> MaskedCollectives:
    """Returns the carrier that simulates the network of a rule: lossy, or reliable."""
    kind = MaskedCollectives if rule.lossy else AllReduce
    return kind(channel, axis_name, assignment)
