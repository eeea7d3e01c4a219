"""JSON objects: never trusted when they are read, and written to files whole or not at all."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


class DamagedError(ValueError):
    """A file, a line of one, or a message that does not hold what it should; says why."""


def parse_object(content: bytes | str, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Returns a JSON object.

    Args:
        content: Its text.
        holds: Whether the object has the keys and the types that are expected.

    Raises:
        DamagedError: It is no such object.
    """
    try:
        values = json.loads(content)
    # Bytes that are no text and numbers of too many digits are ValueErrors too.
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"not JSON: {error}") from None
    if not isinstance(values, dict) or not holds(values):
        raise DamagedError("not the expected keys and types")
    return values


def read_object(path: Path, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Returns the JSON object of a file; otherwise as `parse_object`."""
    try:
        return parse_object(path.read_bytes(), holds)
    except OSError as error:
        raise DamagedError(error.strerror or "not readable") from None


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Writes a JSON file, whole or not at all."""
    write_text(path, json.dumps(values, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a file, whole or not at all."""
    unfinished = path.with_name(path.name + ".tmp")
    unfinished.write_text(text)
    os.replace(unfinished, path)


def is_number(value: Any) -> bool:
    """Returns whether a JSON value is a number that a float can be, which a bool is not."""
    return isinstance(value, float) or (type(value) is int and abs(value) < 2**1000)


def is_count(value: Any) -> bool:
    """Returns whether a JSON value is an integer of 64 bits that is at least 0."""
    return type(value) is int and 0 <= value < 2**63
