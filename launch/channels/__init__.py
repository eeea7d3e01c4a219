"""The channels that a run can have.

A new one is a module in `rps_jax.channels` and its line in `rps_jax.CHANNELS`: its fields that have
a help text are flags. One that needs more, such as a file, is a module here and a line below.
"""

import dataclasses
from typing import TYPE_CHECKING

import rps_jax as rps
from launch.channels import bernoulli, deadline, per_link, trace
from launch.channels.channel_kind import ChannelKind
from launch.channels.of_library import of_library
from launch.cli.fields import joined

if TYPE_CHECKING:
    from launch.config import TrainConfig


@dataclasses.dataclass(frozen=True)
class _OwnFlags(trace.Flags, per_link.Flags, bernoulli.Flags):
    """The flags of the modules here; those of the last class come first in `--help`."""


_OWN = {
    "bernoulli": bernoulli.BERNOULLI,
    "per-link": per_link.PER_LINK,
    "trace": trace.TRACE,
}

CHANNELS: dict[str, ChannelKind] = {
    name: _OWN.get(name) or of_library(name, kind, bernoulli.Flags)
    for name, kind in rps.CHANNELS.items()
}
CHANNELS["deadline"] = deadline.with_slow_workers(CHANNELS["deadline"])

if TYPE_CHECKING:
    ChannelFlags = _OwnFlags
else:
    others = (kind.flags for name, kind in CHANNELS.items() if name not in _OWN)
    ChannelFlags = joined("ChannelFlags", (*others, _OwnFlags))


def make_channel(config: "TrainConfig") -> rps.Channel:
    """Returns the channel of a run, in host memory.

    Raises:
        UsageError: A file of it cannot be read, or does not fit the run.
    """
    return CHANNELS[config.channel].make(config, config.num_workers)
