"""Settings from the command line, and what is wrong with them in its words."""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Annotated, Any

from launch.cli.command_line import Within, check_memory, expect, refuse
from rps_jax.colocation import SettingError, Settings

Thresholds = Annotated[tuple[float, ...], Within(0, 1e12)]
"""In thousands of bytes."""
Iterations = Annotated[int, Within(2, 1000, "in [2, 1000]")]


def settings_of(config: Settings, **changes: Any) -> Settings:
    """Returns the settings among the options of a command, checked.

    Args:
        config: The options; their class adds to those of `Settings`.
        **changes: Settings that the command decides.

    Raises:
        UsageError: They cannot be simulated.
    """
    names = (field.name for field in dataclasses.fields(Settings))
    settings = Settings(**{name: getattr(config, name) for name in names} | changes)
    with refusals():
        settings.check()
    trace = settings.learning_trace
    expect("learning_trace", trace, trace is None or trace.is_file(), "a file that can be read")
    if settings.learning == "bursty":
        # Eight arrays of the packets of an iteration, of 8 bytes each.
        packets = 2 * settings.num_hosts * (settings.num_hosts - 1) * settings.chunk_packets
        check_memory("model_bytes", settings.model_bytes, 8 * 8 * packets)
    return settings


@contextlib.contextmanager
def refusals(**deciding: tuple[str, Any]) -> Iterator[None]:
    """Makes a `SettingError` a `UsageError` of its flag.

    Args:
        **deciding: For settings that are no flags of a command: the flag that decides them, and its
            value.
    """
    try:
        yield
    except SettingError as error:
        name, value = deciding.get(error.name, (error.name, error.value))
        same = value == error.value
        refuse(name, value, error.expected if same else f"another value ({error})")
