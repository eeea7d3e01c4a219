"""Typed command lines: flags in, and what is wrong with them in one line."""

import contextlib
import dataclasses
import inspect
import io
import os
import re
import shutil
import textwrap
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, NamedTuple, NoReturn, TypeVar, get_type_hints

import tyro

Config = TypeVar("Config")

USAGE, DIVERGED, PEER_LOST = 2, 3, 4
"""Exit statuses of a command line that cannot be run, of a training that has left the finite
numbers, and of a process that another one of its job has left alone; 1 is any other failure."""


class CommandError(Exception):
    """What ends a command before it is done.

    Attributes:
        exit_status: Exit status of the process.
    """

    exit_status = 1

    def report(self) -> str:
        """Returns what is to be said of it: one line."""
        return f"error: {' '.join(str(self).split())}"


class UsageError(CommandError):
    """A command line that cannot be run."""

    exit_status = USAGE


class Within(NamedTuple):
    """Range of a number, or of each number of a list: metadata of a flag's field.

    Attributes:
        low: The least.
        high: The most.
        expected: The range in words; by default, whichever end a number is beyond.
    """

    low: float
    high: float
    expected: str | None = None


Count = Annotated[int, Within(1, 1_000_000)]
Seconds = Annotated[float, Within(0, 10_000_000, "seconds, in [0, 10^7]")]
Seed = Annotated[int, Within(0, 2**32 - 1, "an integer in [0, 2^32)")]
OF_SEEDS = Within(0, 2**32 - 1, "integers in [0, 2^32)")
Seeds = Annotated[tuple[int, ...], OF_SEEDS]
Probabilities = Annotated[tuple[float, ...], Within(0, 1, "probabilities in [0, 1]")]

_ANY_INTEGER = Within(-(2**63), 2**63 - 1, "an integer of 64 bits")


def read_command(kind: type[Config], module: str, argv: Sequence[str], defaults: Config) -> Config:
    """Returns what a command line says, with defaults for what it does not say.

    Args:
        kind: A frozen dataclass, a field a flag.
        module: What is run, as in `python -m MODULE`.
        argv: The arguments.
        defaults: Values of the flags that are not given.

    Raises:
        UsageError: The command line cannot be read, or `check_values` refuses a value.
        SystemExit: With status 0, after `--help`.
    """
    paragraphs = (inspect.getdoc(kind) or "").split("\n\n")
    messages = io.StringIO()
    try:
        with contextlib.redirect_stderr(messages):
            config = tyro.cli(
                kind,
                prog=f"python -m {module}",
                description="\n\n".join(map(wrapped, paragraphs)),
                args=list(argv),
                default=defaults,
                config=(tyro.conf.FlagCreatePairsOff,),
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise UsageError(_one_line(messages.getvalue())) from None
    check_values(config)
    return config


def wrapped(text: str, first: str = "", others: str = "  ") -> str:
    """Returns a paragraph in lines that fit the terminal, which begin with these indents.

    Tyro joins lines to those before, but for those that begin with no letter.
    """
    width = max(40, shutil.get_terminal_size().columns)
    return textwrap.fill(text, width, initial_indent=first, subsequent_indent=others)


def check_values(config: Any) -> None:
    """Raises `UsageError` for a list that is empty or repeats itself, or a number out of range.

    Args:
        config: The options of a command, a dataclass. `Within` in the annotation of a field is the
            range of its numbers; an integer without one has at most 64 bits.
    """
    hints = get_type_hints(type(config), include_extras=True)
    for field in dataclasses.fields(config):
        name, value = field.name, getattr(config, field.name)
        values = value if isinstance(value, tuple) else (value,)
        expect(name, "", len(values) > 0, "at least one")
        shown = " ".join(map(str, values))
        expect(name, shown, len(set(values)) == len(values), "each value once")
        metadata = getattr(hints[name], "__metadata__", ())
        ranges = [entry for entry in metadata if isinstance(entry, Within)]
        for number in values:
            if isinstance(number, int | float):
                for low, high, expected in ranges or [_ANY_INTEGER] * isinstance(number, int):
                    beyond = f"at most {high:g}" if number > high else f"at least {low:g}"
                    expect(name, number, low <= number <= high, expected or beyond)


def check_memory(name: str, value: Any, num_bytes: float) -> None:
    """Raises `UsageError` if what a flag asks for needs more memory than this machine has.

    Args:
        name: Name of the flag's field.
        value: Value of the flag.
        num_bytes: What is needed, from the shapes of the arrays.
    """
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    found = f"{num_bytes / 2**30:.3g} GiB do not"
    expect(name, value, num_bytes <= memory, f"what fits into {memory / 2**30:.0f} GiB ({found})")


def split_arguments(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Returns the arguments of a command, and those of launch.train that follow `--`."""
    place = argv.index("--") if "--" in argv else len(argv)
    return list(argv[:place]), list(argv[place + 1 :])


def optional(metavar: str, if_none: str) -> Any:
    """Returns how `--help` shows a flag that may be None, and what that means."""

    def hint(default: str) -> str:
        return f"(default: {if_none if default == 'None' else default})"

    return tyro.conf.arg(metavar=metavar, help_behavior_hint=hint)


def exactly(number: float) -> str:
    """Returns a number in few digits, but in as many as tell it from all others."""
    short = f"{number:g}"
    return short if float(short) == number else repr(float(number))


def expect(name: str, value: Any, holds: bool, expected: str) -> None:
    """Raises `UsageError` unless `holds`: what the flag of a field was expected to be."""
    if not holds:
        refuse(name, value, expected)


def refuse(name: str, value: Any, expected: str) -> NoReturn:
    """Raises `UsageError` for the flag of a field: what it was expected to be."""
    raise UsageError(f"{_flag(name, value)}: expected {expected}")


def requires(name: str, value: Any, others: str) -> NoReturn:
    """Raises `UsageError` for the flag of a field that says nothing without other flags."""
    raise UsageError(f"{_flag(name, value)} requires {others}")


def not_allowed(name: str, value: Any, where: str) -> NoReturn:
    """Raises `UsageError` for the flag of a field that must not stand where it does."""
    raise UsageError(f"{_flag(name, value)} is not allowed {where}")


def check_untouched(config: Any, defaults: Any, names: Iterable[str]) -> None:
    """Raises `UsageError` for a flag of launch.train after `--` that the command itself decides.

    Args:
        config: The flags of launch.train.
        defaults: What they are where they are not given.
        names: The fields of the flags that may not be given.
    """
    for name in names:
        if getattr(config, name) != getattr(defaults, name):
            not_allowed(name, getattr(config, name), "after --")


def _flag(name: str, value: Any) -> str:
    shown = "" if value is True or value is None or value == "" else f" {value}"
    return f"--{name.replace('_', '-')}{shown}"


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
