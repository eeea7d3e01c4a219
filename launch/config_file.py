"""What the folder of a run keeps of its configuration, and what may not change when it goes on."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.cli.command_line import refuse
from launch.cli.fields import Mark, marked

if TYPE_CHECKING:
    from launch.config import TrainConfig

CONFIG_FILE = "config.json"


def to_json(config: "TrainConfig") -> dict[str, Any]:
    """Returns what the folder of a run keeps of its configuration, as JSON values."""
    left_out = marked(type(config), Mark.NOT_STORED, Mark.OF_PROCESS)
    return {
        name: str(value) if isinstance(value, Path) else value
        for name, value in dataclasses.asdict(config).items()
        if name not in left_out
    }


def deciding(config: "TrainConfig") -> dict[str, Any]:
    """Returns what decides the result of a run, as JSON values."""
    free = marked(type(config), Mark.MAY_CHANGE)
    return {name: value for name, value in to_json(config).items() if name not in free}


def check_unchanged(config: "TrainConfig", before: Mapping[str, Any], where: str) -> None:
    """Raises `UsageError` if something that decides the result differs from an earlier run.

    Args:
        config: Configuration of the run that is to go on.
        before: What decided the result then, of `deciding`; fields that it lacks are not compared.
        where: What the earlier run is, for people.
    """
    for name, new in deciding(config).items():
        old = before.get(name, new)
        if old == new:
            continue
        expected = f"{old}, as {where} has it"
        if name == "num_workers":
            if config.allow_resize:
                continue
            if config.network != "udp":
                expected += " (--allow-resize goes on with another number)"
        if name.endswith("_sha256"):
            name = name.removesuffix("_sha256")
            new = getattr(config, name)
            expected = f"the {name.replace('_', ' ')} that {where} began with"
        refuse(name, new, expected)
