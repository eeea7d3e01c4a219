"""What the options of a figure and of a search have in common."""

import math
from typing import Annotated, Any, TypeVar

from launch.cli.command_line import Within, optional
from launch.trainer.writing import check_can_write

T = TypeVar("T")

TimeLimit = Annotated[
    float | None,
    optional("SECONDS", "none"),
    Within(math.ulp(0.0), math.inf, "a positive number of seconds"),
]


def given_or(value: T | None, default: T) -> T:
    """Returns the value of a flag, or its default where it was not given."""
    return default if value is None else value


def check_folders(config: Any) -> None:
    """Raises `UsageError` for a folder that cannot be written."""
    for name in ("runs_dir", "output_dir"):
        check_can_write(name, getattr(config, name))
