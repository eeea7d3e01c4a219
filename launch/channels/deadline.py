"""Messages that are late are dropped, and some workers may be slower than others."""

import dataclasses
from typing import Annotated, Any

import numpy as np

import rps_jax as rps
from launch.channels.channel_kind import ChannelKind
from launch.cli.command_line import expect, optional, requires
from launch.cli.fields import AT_LEAST_1, POSITIVE, joined


@dataclasses.dataclass(frozen=True)
class _SlowWorkers:
    slow_workers: Annotated[int | None, optional("INT", "none"), AT_LEAST_1] = None
    """So many workers are slow, those of the lowest numbers."""
    slowness: Annotated[float | None, optional("FLOAT", "none"), POSITIVE] = None
    """By what the delay of a message is multiplied where it is from or to a slow worker."""


def with_slow_workers(kind: ChannelKind) -> ChannelKind:
    """Returns the entry of the channel with flags for slow workers.

    Args:
        kind: The entry that its own options make.
    """

    def check(flags: Any) -> None:
        kind.check(flags)
        for name, other in (("slow_workers", "slowness"), ("slowness", "slow_workers")):
            if getattr(flags, name) is not None and getattr(flags, other) is None:
                requires(name, getattr(flags, name), f"--{other.replace('_', '-')}")
        if flags.slow_workers is not None:
            most = flags.num_workers
            fits = flags.slow_workers <= most
            expect("slow_workers", flags.slow_workers, fits, f"at most the {most} workers")

    def make(flags: Any, num_workers: int) -> rps.Channel:
        channel = kind.make(flags, num_workers)
        if flags.slow_workers is None:
            return channel
        slow = np.arange(num_workers) < flags.slow_workers
        slowness = np.where(slow, np.float32(flags.slowness), np.float32(1))
        of_messages = channel.channel if isinstance(channel, rps.AllOrNothing) else channel
        assert isinstance(of_messages, rps.Deadline)
        made: rps.Channel = dataclasses.replace(of_messages, slowness=slowness)
        return rps.AllOrNothing(made) if flags.all_or_nothing else made

    def describe(flags: Any) -> str:
        slow = ""
        if flags.slow_workers is not None:
            slow = f", {flags.slow_workers} slow by {flags.slowness:g}"
        return kind.describe(flags) + slow

    return ChannelKind(joined("Flags", (_SlowWorkers, kind.flags)), check, make, describe)
