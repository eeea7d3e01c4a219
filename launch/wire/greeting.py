"""What a worker says of itself to the coordinator, which compares it with its own."""

import socket
from typing import Any

from launch.config_file import deciding
from launch.distributed.consistency import differences, what_must_be_the_same
from launch.trainer.setup import Setup
from launch.wire.events import Event


def greeting(setup: Setup) -> dict[str, Any]:
    """Returns the host of this process, and what it was given."""
    return {"host": socket.gethostname(), "same": _given(setup)}


def refusal(greeted: Event, setup: Setup) -> str | None:
    """Returns why a worker cannot take part in the coordinator's run, None if it can."""
    host, same = greeted.header.get("host"), greeted.header.get("same")
    found = differences(same if isinstance(same, dict) else {}, _given(setup))
    return (
        f"worker {greeted.worker} on {host} has {found}, as the coordinator has" if found else None
    )


def _given(setup: Setup) -> dict[str, str]:
    return what_must_be_the_same(deciding(setup.config), f"{setup.data} {setup.data_digest}")
