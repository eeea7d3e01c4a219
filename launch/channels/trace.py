"""Drops that were recorded, or simulated, beforehand are replayed from a file."""

import dataclasses
import functools
from pathlib import Path
from typing import Annotated

import tyro

import rps_jax as rps
from launch.channels.channel_kind import ChannelKind
from launch.channels.file_flag import with_digest
from launch.cli.command_line import UsageError, expect, optional, refuse, requires
from launch.cli.fields import Mark


@dataclasses.dataclass(frozen=True)
class Flags:
    """Flags of this channel."""

    # Hosts may have it in different places: its digest counts.
    trace: Annotated[Path | None, optional("PATH", "none"), Mark.MAY_CHANGE, Mark.MAY_DIFFER] = None
    """File of recorded drops, replayed step by step and then anew: rps_jax/channels/trace.py."""
    trace_sha256: Annotated[str | None, tyro.conf.Fixed, tyro.conf.Suppress] = None
    """Digest of that file, which a resumed run must find unchanged."""


def check(flags: Flags) -> None:
    """Raises `UsageError` if there is no file."""
    if flags.trace is None:
        requires("channel", "trace", "--trace, a file of recorded drops")


def make(flags: Flags, num_workers: int) -> rps.Trace:
    """Returns the trace.

    Raises:
        UsageError: It cannot be read, or is of another number of hosts.
    """
    assert flags.trace is not None  # as checked
    try:
        trace = rps.Trace.load(flags.trace)
    except OSError as error:
        refuse("trace", flags.trace, f"a file that can be read ({error.strerror})")
    except ValueError as error:
        raise UsageError(f"--trace {error}") from None
    hosts = f"{trace.num_hosts}, the number of hosts in --trace {flags.trace}"
    expect("num_workers", num_workers, trace.num_hosts == num_workers, hosts)
    return trace


def describe(flags: Flags) -> str:
    """Returns the name of the file."""
    assert flags.trace is not None  # as checked
    return f"drops as in {flags.trace.name}"


TRACE = ChannelKind(Flags, check, make, describe, functools.partial(with_digest, "trace"))
