"""What can be chosen for exchanges over UDP."""

import dataclasses
import re
import stat
from pathlib import Path
from typing import Annotated, Literal

from launch.cli.command_line import (
    UsageError,
    Within,
    expect,
    optional,
    refuse,
)
from rps_jax.transport.packets import LEAST_MTU, MOST_MTU, MTU

NO_AUTHENTICATION = (
    "no authentication: whoever can send to the workers' ports can change what they learn"
)


@dataclasses.dataclass(frozen=True)
class UdpFlags:
    """How a worker sends, and how long it waits."""

    link_rate: Annotated[
        float | None, optional("BITS", "found by itself"), Within(1e4, 1e12, "bits a second")
    ] = None
    """Bits a second that a worker sends at the most."""
    deadline: Annotated[float, Within(1e-3, 1e4, "seconds, in [0.001, 10^4]")] = 5.0
    """Seconds to wait for the others in a phase at the most; less where phases take less."""
    mtu: Annotated[int, Within(LEAST_MTU, MOST_MTU, f"bytes, {LEAST_MTU} to {MOST_MTU}")] = MTU
    """Bytes of the largest packet that the network carries whole: 1500 on plain Ethernet."""
    dscp: Literal["default", "le"] = "default"
    """le: lower effort (RFC 8622), so that switches drop this traffic before all other."""
    no_authentication: bool = False
    """Accept datagrams from anyone: whoever can send to a worker can change its model."""


def read_key(path: Path) -> bytes:
    """Returns the key in a file that its owner alone can read.

    Raises:
        UsageError: Others can read it, or it holds no key.
    """
    try:
        mode, content = path.stat().st_mode, path.read_text().strip()
    except (OSError, ValueError) as error:
        raise UsageError(f"--key-file {path}: expected a file that can be read ({error})") from None
    others = stat.S_IRGRP | stat.S_IROTH
    expect("key_file", path, not mode & others, "a file that others cannot read (chmod 600)")
    if re.fullmatch("(?:[0-9a-fA-F]{2}){16,64}", content) is None:
        refuse("key_file", path, "16 to 64 bytes in hexadecimal, as of: openssl rand -hex 32")
    return bytes.fromhex(content)
