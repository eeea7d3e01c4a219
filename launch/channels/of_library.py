"""A channel of the library that needs no more than its options: they are its flags."""

from typing import Any

import rps_jax as rps
from launch.channels import packets
from launch.channels.channel_kind import ChannelKind
from launch.cli.command_line import UsageError
from launch.cli.fields import fields_of, flags_of, joined, options_of


def of_library(name: str, kind: type, known: type) -> ChannelKind:
    """Returns the entry of a channel.

    Args:
        name: Name of the channel.
        kind: Its class, a dataclass.
        known: Flags of other channels, which it may share.
    """
    options = flags_of(kind, known)
    cuts_messages = "packets" in fields_of(options)
    flags = joined("Flags", (options, packets.Flags)) if cuts_messages else options

    def make(config: Any, num_workers: int) -> rps.Channel:
        del num_workers
        try:
            channel: rps.Channel = kind(**options_of(options, config))
        except ValueError as error:
            raise UsageError(f"--channel {name}: {error}") from None
        return packets.of_messages(config, channel) if cuts_messages else channel

    def check(config: Any) -> None:
        if cuts_messages:
            packets.check(config)
        make(config, 1)

    def describe(config: Any) -> str:
        given = {k: v for k, v in options_of(options, config).items() if k != "packets"}
        shown = [f"{k.replace('_', ' ')} {v}" for k, v in given.items() if v is not None]
        of_packets = packets.describe(config) if cuts_messages else ""
        return ", ".join((f"{name} channel", *shown)) + of_packets

    return ChannelKind(flags, check, make, describe)
