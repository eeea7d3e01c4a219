"""Messages that are cut into packets: flags of every channel that can drop them one by one."""

import dataclasses
from typing import Annotated

import rps_jax as rps
from launch.cli.command_line import optional, requires
from launch.cli.fields import AT_LEAST_1


@dataclasses.dataclass(frozen=True)
class Flags:
    """Flags of these channels."""

    packets: Annotated[int | None, optional("INT", "messages are dropped whole"), AT_LEAST_1] = None
    """Cut each message into so many packets, each dropped by itself."""
    all_or_nothing: bool = False
    """Drop a message whole if any of its packets is dropped, for comparison."""


def check(flags: Flags) -> None:
    """Raises `UsageError` if there are no packets to count."""
    if flags.all_or_nothing and flags.packets is None:
        requires("all_or_nothing", True, "--packets")


def describe(flags: Flags) -> str:
    """Returns what follows the description of a channel, for people: nothing without packets."""
    if flags.packets is None:
        return ""
    counting = ", all or nothing" if flags.all_or_nothing else ""
    return f", in {flags.packets} packets{counting}"


def of_messages(flags: Flags, channel: rps.Channel) -> rps.Channel:
    """Returns the channel as the flags would have its packets count."""
    return rps.AllOrNothing(channel) if flags.all_or_nothing else channel
