"""Settings from the command line, and what is wrong with them in its words."""

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

from launch.cli.command_line import check_memory, expect, refuse
from launch.trainer.run_directory import check_can_write
from rps_jax.colocation import SettingError, Settings


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
    if settings.learning == "bursty":
        # Eight arrays of the packets of an iteration, of 8 bytes each.
        packets = 2 * settings.num_hosts * (settings.num_hosts - 1) * settings.chunk_packets
        check_memory("model_bytes", settings.model_bytes, 8 * 8 * packets)
    return settings


def check_least(name: str, values: Sequence[float], least: float) -> None:
    """Raises `UsageError` if a value of a flag is below the least, or infinite."""
    lowest = min(values)
    expect(name, lowest, least <= lowest < math.inf, f"finite numbers of at least {least:g}")


def check_sweep(config: Any, least: dict[str, float]) -> None:
    """Raises `UsageError` for a figure that cannot be made.

    Args:
        config: Its options: `iterations`, `processes`, `output_dir`, and lists of numbers.
        least: What no number of a list may be below.
    """
    for name, lowest in least.items():
        check_least(name, getattr(config, name), lowest)
    expect("iterations", config.iterations, 2 <= config.iterations <= 1000, "in [2, 1000]")
    expect("processes", config.processes, config.processes >= 1, "at least 1")
    check_can_write("output_dir", config.output_dir)


@contextlib.contextmanager
def refusals() -> Iterator[None]:
    """Makes a `SettingError` a `UsageError` of its flag."""
    try:
        yield
    except SettingError as error:
        refuse(error.name, error.value, error.expected)
