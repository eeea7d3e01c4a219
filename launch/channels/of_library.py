"""A channel of the library that needs no more than its options: they are its flags."""

from typing import Any

import rps_jax as rps
from launch.channels.channel_kind import ChannelKind
from launch.cli.command_line import UsageError
from launch.cli.fields import flags_of, options_of


def of_library(name: str, kind: type, known: type) -> ChannelKind:
    """Returns the entry of a channel.

    Args:
        name: Name of the channel.
        kind: Its class, a dataclass.
        known: Flags of other channels, which it may share.
    """
    flags = flags_of(kind, known)

    def make(config: Any, num_workers: int) -> rps.Channel:
        del num_workers
        try:
            channel: rps.Channel = kind(**options_of(flags, config))
            return channel
        except ValueError as error:
            raise UsageError(f"--channel {name}: {error}") from None

    def check(config: Any) -> None:
        make(config, 1)

    def describe(config: Any) -> str:
        options = options_of(flags, config).items()
        shown = [f"{key.replace('_', ' ')} {value}" for key, value in options if value is not None]
        return ", ".join((f"{name} channel", *shown))

    return ChannelKind(flags, check, make, describe)
