"""Typed command lines whose every mistake ends in one line on stderr and status 2."""

import contextlib
import io
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn, TypeVar

import tyro

Config = TypeVar("Config")


class UsageError(Exception):
    """A command line that cannot be run; the message is one line for the user."""


def read_command(
    kind: type[Config], module: str, argv: Sequence[str] | None, defaults: Config
) -> Config:
    """Returns what a command line says, with defaults for what it does not say.

    Args:
        kind: A frozen dataclass, a field a flag.
        module: What is run, as in `python -m MODULE`.
        argv: The arguments; None for those of this process.
        defaults: Values of the flags that are not given.

    Raises:
        UsageError: The command line cannot be read.
        SystemExit: With status 0, after `--help`.
    """
    messages = io.StringIO()
    try:
        with contextlib.redirect_stderr(messages):
            return tyro.cli(
                kind,
                prog=f"python -m {module}",
                args=None if argv is None else list(argv),
                default=defaults,
                config=(tyro.conf.FlagCreatePairsOff,),
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise UsageError(_one_line(messages.getvalue())) from None


def expect(name: str, value: Any, holds: bool, expected: str) -> None:
    """Raises `UsageError` unless `holds`: what the flag of a field was expected to be."""
    if not holds:
        refuse(name, value, expected)


def refuse(name: str, value: Any, expected: str) -> NoReturn:
    """Raises `UsageError` for the flag of a field: what it was expected to be."""
    flag = "--" + name.replace("_", "-")
    shown = "" if value is True or value is None else f" {value}"
    raise UsageError(f"{flag}{shown}: expected {expected}")


def fail(error: Exception | str) -> NoReturn:
    """Ends the program as a bad command line does: one line on stderr, status 2."""
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    raise SystemExit(2)


# What tyro says, in the words of the other messages.
_REWORDINGS = (
    (r"Error parsing (--[\w-]+): .*\bint\b.*: '(.*)'", r"\1 \2: expected an integer"),
    (r"Error parsing (--[\w-]+): .*\bfloat\b.*: '(.*)'", r"\1 \2: expected a number"),
    (r"invalid choice '(.*)' for argument '(.*)'\. Expected (.*)\.", r"\2 \1: expected \3"),
    (r"Missing value for argument '(.*)'\. Expected 1 values\.", r"\1: expected a value"),
    (r"Unrecognized options: (.*)", r"\1: expected the options that --help lists"),
)


def _one_line(boxed: str) -> str:
    """Returns the message of tyro's box, which precedes a rule and advice on `--help`."""
    lines: list[str] = []
    for line in boxed.splitlines():
        text = line.strip("│╭╮╰╯ ")
        if text.startswith("──") and lines:
            break
        if text and not line.startswith("╭"):
            lines.append(text)
    text = " ".join(lines) or "the command line cannot be read"
    for pattern, rewording in _REWORDINGS:
        text = re.sub(f"^{pattern}$", rewording, text)
    return text
