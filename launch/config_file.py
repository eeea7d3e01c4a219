"""What the folder of a run keeps of its configuration, and what may not change when it goes on."""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args, get_origin

from launch.cli.command_line import UsageError, refuse
from launch.cli.fields import Mark, fields_of, marked
from launch.json_objects import is_number

if TYPE_CHECKING:
    from launch.config import TrainConfig

CONFIG_FILE = "config.json"

Config = TypeVar("Config")


def to_json(config: "TrainConfig") -> dict[str, Any]:
    """Returns what the folder of a run keeps of its configuration, as JSON values."""
    left_out = marked(type(config), Mark.NOT_STORED, Mark.OF_PROCESS)
    return {
        name: str(value) if isinstance(value, Path) else value
        for name, value in dataclasses.asdict(config).items()
        if name not in left_out
    }


def from_json(kind: type[Config], values: Any) -> Config:
    """Returns the configuration of a JSON object; fields that it lacks have their defaults.

    Raises:
        UsageError: It is no object, has a key that is no field, or a value of another type.
    """
    if not isinstance(values, dict):
        raise UsageError("expected a JSON object")
    fields = fields_of(kind)
    for key in values:
        if key not in fields:
            raise UsageError(f"{_shown(key)}: expected the names of flags")
    return kind(**{key: _typed(key, fields[key].type, value) for key, value in values.items()})


def _typed(name: str, kind: Any, value: Any) -> Any:
    """Returns a JSON value as one of a type, as strictly as the command line reads it."""
    union = get_origin(kind) is not Literal and get_args(kind)
    kinds = union or (kind,)
    for option in kinds:
        if get_origin(option) is Literal:
            if isinstance(value, str) and value in get_args(option):
                return value
        elif option is Path:
            if isinstance(value, str) and _names_a_file(value):
                return Path(value)
        elif option is float:
            if is_number(value):
                return float(value)
        elif type(value) is option:
            return value
    names = " or ".join(_NAMES.get(option) or ", ".join(get_args(option)) for option in kinds)
    flag = name.replace("_", "-")
    raise UsageError(f"--{flag} {_shown(value)}: expected {names}")


def _names_a_file(text: str) -> bool:
    """Returns whether the file system can have a file of this name."""
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


_NAMES = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "a string",
    Path: "a path",
    NoneType: "null",
}


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


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
