"""What is wrong with the options of a figure or a search, before anything runs."""

from typing import Any, TypeVar

from launch.cli.command_line import expect
from launch.trainer.writing import check_can_write

T = TypeVar("T")


def given_or(value: T | None, default: T) -> T:
    """Returns the value of a flag, or its default where it was not given."""
    return default if value is None else value


def check_slot(config: Any) -> None:
    """Raises `UsageError` for a time limit or a folder that cannot be."""
    limit = config.time_limit
    expect("time_limit", limit, limit is None or limit > 0, "a positive number of seconds")
    for name in ("runs_dir", "output_dir"):
        check_can_write(name, getattr(config, name))
