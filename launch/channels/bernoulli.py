"""Each message is dropped with the same probability, independently of all others."""

import dataclasses
from typing import Annotated

import rps_jax as rps
from launch.channels.channel_kind import ChannelKind
from launch.cli.command_line import expect, optional
from launch.cli.fields import AT_LEAST_1, PROBABILITY


@dataclasses.dataclass(frozen=True)
class Flags:
    """Flags of this channel."""

    drop_rate: Annotated[float | None, optional("FLOAT", "none"), PROBABILITY] = 0.1
    """Probability that a message is dropped."""
    all_gather_drop_rate: Annotated[float | None, optional("FLOAT", "the same"), PROBABILITY] = None
    """The same in the all-gather, where it differs from the reduce-scatter."""
    packets: Annotated[int | None, optional("INT", "messages are dropped whole"), AT_LEAST_1] = None
    """Cut each message into so many packets, each dropped by itself."""


def check(flags: Flags) -> None:
    """Raises `UsageError` if there is no drop rate."""
    expect("drop_rate", "None", flags.drop_rate is not None, "a probability in [0, 1]")


def make(flags: Flags, num_workers: int) -> rps.Bernoulli:
    """Returns the channel."""
    del num_workers
    assert flags.drop_rate is not None  # as checked
    return rps.Bernoulli(flags.drop_rate, flags.all_gather_drop_rate, flags.packets)


def describe(flags: Flags) -> str:
    """Returns how many messages are dropped."""
    rates = [flags.drop_rate, flags.all_gather_drop_rate]
    shown = " and ".join(f"{100 * rate:.3g}%" for rate in rates if rate is not None)
    return f"{shown} of messages dropped"


BERNOULLI = ChannelKind(Flags, check, make, describe)
