"""Typed command lines, and commands whose every failure ends in one line on stderr."""

import contextlib
import io
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

import tyro

Config = TypeVar("Config")

USAGE, DIVERGED, PEER_LOST = 2, 3, 4
"""Exit statuses of a command line that cannot be run, of a training that has left the finite
numbers, and of a process that another one of its job has left alone; 1 is any other failure."""


class CommandError(Exception):
    """What ends a command before it is done.

    Attributes:
        exit_status: Of the process.
    """

    exit_status = 1

    def report(self) -> str:
        """Returns what is to be said of it: one line."""
        return f"error: {' '.join(str(self).split())}"


class UsageError(CommandError):
    """A command line that cannot be run."""

    exit_status = USAGE


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


def subcommand(module: str, commands: dict[str, str], argv: Sequence[str]) -> str | None:
    """Returns which of several commands comes first, None where `--help` asked for their list.

    Args:
        module: What is run, as in `python -m MODULE`.
        commands: What each is, for people.
        argv: The arguments.

    Raises:
        UsageError: None of them comes first.
    """
    if argv and argv[0] in ("-h", "--help"):
        print(f"usage: python -m {module} COMMAND [OPTIONS]\n")
        width = max(map(len, commands))
        for name, what in commands.items():
            print(f"  {name:<{width}}  {what}")
        print(f"\npython -m {module} COMMAND --help lists the options of each.")
        return None
    if not argv or argv[0] not in commands:
        found = f" {argv[0]}" if argv else ""
        raise UsageError(f"{module}{found}: expected one of {', '.join(commands)}")
    return argv[0]


def split_arguments(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Returns the arguments of a command, and those of launch.train that follow `--`."""
    place = argv.index("--") if "--" in argv else len(argv)
    return list(argv[:place]), list(argv[place + 1 :])


def optional(metavar: str, if_none: str) -> Any:
    """Returns how `--help` shows a flag that may be None, and what that means."""

    def hint(default: str) -> str:
        return f"(default: {if_none if default == 'None' else default})"

    return tyro.conf.arg(metavar=metavar, help_behavior_hint=hint)


def expect(name: str, value: Any, holds: bool, expected: str) -> None:
    """Raises `UsageError` unless `holds`: what the flag of a field was expected to be."""
    if not holds:
        refuse(name, value, expected)


def refuse(name: str, value: Any, expected: str) -> NoReturn:
    """Raises `UsageError` for the flag of a field: what it was expected to be."""
    flag = "--" + name.replace("_", "-")
    shown = "" if value is True or value is None or value == "" else f" {value}"
    raise UsageError(f"{flag}{shown}: expected {expected}")


def exit_status(run: Callable[[], int]) -> int:
    """Runs a command and returns its exit status; whatever ends it early is said in one line.

    Args:
        run: The command; returns its exit status.
    """
    try:
        return run()
    except CommandError as error:
        if report := error.report():
            print(report, file=sys.stderr, flush=True)
        return error.exit_status
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            # Whoever read the output has gone; Python is not to complain of it when it ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 128 + signal.SIGPIPE
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT


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
    # Where stdout is not UTF-8, the box is a title, a rule of ASCII, and then the message.
    titled = "╭" in boxed
    for line in boxed.splitlines():
        text = line.strip("│╭╮╰╯ ")
        if text and not text.strip("─-"):
            if titled and lines:
                break
            titled, lines = True, []
        elif text and not line.startswith("╭"):
            lines.append(text)
    text = " ".join(lines) or "the command line cannot be read"
    for pattern, rewording in _REWORDINGS:
        text = re.sub(f"^{pattern}$", rewording, text)
    return text
