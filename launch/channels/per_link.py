"""Each link has a drop rate of its own, from a file."""

import dataclasses
import functools
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

import rps_jax as rps
from launch.channels import packets
from launch.channels.channel_kind import ChannelKind
from launch.channels.file_flag import with_digest
from launch.cli.command_line import UsageError, expect, optional, refuse, requires
from launch.cli.fields import Mark


@dataclasses.dataclass(frozen=True)
class Flags(packets.Flags):
    """Flags of this channel."""

    link_drop_rates: Annotated[
        Path | None, optional("PATH", "none"), Mark.MAY_CHANGE, Mark.MAY_DIFFER
    ] = None
    """CSV file of each link's drop rate: a line a sender, a column a receiver; or twice as many
    lines, those of the reduce-scatter and then those of the all-gather."""
    link_drop_rates_sha256: Annotated[str | None, tyro.conf.Fixed, tyro.conf.Suppress] = None
    """Digest of that file, which a resumed run must find unchanged."""


def check(flags: Flags) -> None:
    """Raises `UsageError` if there is no file, or no packets to count."""
    packets.check(flags)
    if flags.link_drop_rates is None:
        requires("channel", "per-link", "--link-drop-rates, a CSV file")


def make(flags: Flags, num_workers: int) -> rps.Channel:
    """Returns the channel.

    Raises:
        UsageError: The file cannot be read, or is of another number of workers.
    """
    assert flags.link_drop_rates is not None  # as checked
    rates = _read(flags.link_drop_rates)
    lines, columns = rates.shape
    if lines not in (columns, 2 * columns):
        square = f"as many lines as columns, {columns}, or twice as many; found {lines}"
        refuse("link_drop_rates", flags.link_drop_rates, square)
    workers = f"{columns}, the number of workers in --link-drop-rates {flags.link_drop_rates}"
    expect("num_workers", num_workers, columns == num_workers, workers)
    by_phase = rates if lines == columns else rates.reshape(2, columns, columns)
    try:
        channel = rps.PerLink(by_phase, flags.packets)
    except ValueError as error:
        raise UsageError(f"--link-drop-rates {flags.link_drop_rates}: {error}") from None
    return packets.of_messages(flags, channel)


def _read(path: Path) -> np.ndarray:
    """Returns the numbers of a CSV file, float32 `[lines, columns]`."""
    try:
        rows = [line.split(",") for line in path.read_text().split("\n") if line.strip()]
        rates = np.array([[float(number) for number in row] for row in rows], np.float32)
    except OSError as error:
        refuse("link_drop_rates", path, f"a file that can be read ({error.strerror})")
    except ValueError:  # No text, no numbers, or lines of different lengths.
        refuse("link_drop_rates", path, "lines of as many numbers each, separated by commas")
    if rates.ndim != 2:
        refuse("link_drop_rates", path, "a CSV file of drop rates, found an empty one")
    return rates


def describe(flags: Flags) -> str:
    """Returns the name of the file."""
    assert flags.link_drop_rates is not None  # as checked
    return f"drop rates of links as in {flags.link_drop_rates.name}{packets.describe(flags)}"


_COMPLETE = functools.partial(with_digest, "link_drop_rates")
PER_LINK = ChannelKind(Flags, check, make, describe, _COMPLETE)
