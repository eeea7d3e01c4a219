"""Each message is dropped with the same probability, independently of all others."""

import dataclasses
from typing import Annotated

import rps_jax as rps
from launch.channels import packets
from launch.channels.channel_kind import ChannelKind
from launch.cli.command_line import expect, optional
from launch.cli.fields import PROBABILITY


@dataclasses.dataclass(frozen=True)
class Flags(packets.Flags):
    """Flags of this channel."""

    drop_rate: Annotated[float | None, optional("FLOAT", "none"), PROBABILITY] = 0.1
    """Probability that a message is dropped."""
    all_gather_drop_rate: Annotated[float | None, optional("FLOAT", "the same"), PROBABILITY] = None
    """The same in the all-gather, where it differs from the reduce-scatter."""


def check(flags: Flags) -> None:
    """Raises `UsageError` if there is no drop rate, or no packets to count."""
    packets.check(flags)
    expect("drop_rate", "None", flags.drop_rate is not None, "a probability in [0, 1]")


def make(flags: Flags, num_workers: int) -> rps.Channel:
    """Returns the channel."""
    del num_workers
    assert flags.drop_rate is not None  # as checked
    channel = rps.Bernoulli(flags.drop_rate, flags.all_gather_drop_rate, flags.packets)
    return packets.of_messages(flags, channel)


def describe(flags: Flags) -> str:
    """Returns how many messages are dropped."""
    rates = [flags.drop_rate, flags.all_gather_drop_rate]
    shown = " and ".join(f"{100 * rate:.3g}%" for rate in rates if rate is not None)
    return f"{shown} of messages dropped{packets.describe(flags)}"


BERNOULLI = ChannelKind(Flags, check, make, describe)
