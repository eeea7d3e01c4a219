"""What is known of a flag beside its type and default: said once, at the field.

In `Annotated[Path | None, Mark.MAY_CHANGE]`, next to the ranges of `launch.cli.command_line`.
"""

import dataclasses
import enum
import functools
import math
import operator
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from types import NoneType
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import tyro

from launch.cli.command_line import Within, requires


class Mark(enum.Enum):
    """What may be done with a field of a configuration; without a mark, nothing of it."""

    MAY_CHANGE = "may change when a run is resumed: it does not decide the result"
    MAY_DIFFER = "may differ between the processes of a run"
    NOT_STORED = "is not kept in the run directory, and so may change"
    OF_ONE_RUN = "names a file of a single run, which commands that train many do not take"
    NOT_OVER_UDP = "is not allowed over UDP"
    OF_PROCESS = "says which process this is, which launchers do; is not kept either"


PROBABILITY = Within(0, 1, "a probability in [0, 1]")
POSITIVE = Within(math.ulp(0.0), sys.float_info.max, "a positive number")
NOT_NEGATIVE = Within(0, sys.float_info.max, "a number of at least 0")
AT_LEAST_0 = Within(0, 2**63 - 1)
AT_LEAST_1 = Within(1, 2**63 - 1)


class Field(NamedTuple):
    """A field of a configuration.

    Attributes:
        hint: As it is annotated.
        type: The same without annotations.
        default: Default in the dataclass.
        annotations: Marks and ranges, among others.
    """

    hint: Any
    type: Any
    default: Any
    annotations: tuple[Any, ...]

    @property
    def absent(self) -> Any:
        """The value that says that the flag was not given: None where it may be None."""
        return None if NoneType in get_args(self.type) else self.default


def fields_of(kind: type) -> dict[str, Field]:
    """Returns the fields of a dataclass by name."""
    hints = get_type_hints(kind, include_extras=True)
    found = {}
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        annotated = get_origin(hint) is Annotated
        annotations = hint.__metadata__ if annotated else ()
        kind_of_value = hint.__origin__ if annotated else hint
        found[field.name] = Field(hint, kind_of_value, field.default, annotations)
    return found


def marked(kind: type, *marks: Mark) -> tuple[str, ...]:
    """Returns the names of the fields that have any of some marks."""
    return tuple(
        name for name, field in fields_of(kind).items() if not set(marks).isdisjoint(_marks(field))
    )


def _marks(field: Field) -> Iterator[Mark]:
    return (mark for mark in field.annotations if isinstance(mark, Mark))


def names_given(argv: Iterable[str]) -> set[str]:
    """Returns the fields of the flags on a command line, whatever their values."""
    flags = (word[2:].partition("=")[0] for word in argv if word.startswith("--"))
    return {flag.replace("-", "_") for flag in flags}


def check_belongs(
    config: Any, chooser: str, owners: Mapping[str, type], given: Collection[str] = ()
) -> None:
    """Raises `UsageError` for a flag that the chosen entry of a registry does not have.

    Args:
        config: All flags.
        chooser: The flag that chooses the entry.
        owners: The class of each entry's flags.
        given: Fields of flags that were given, also where that is their default.
    """
    chosen = fields_of(owners[getattr(config, chooser)])
    fields = {name: field for kind in owners.values() for name, field in fields_of(kind).items()}
    for name, field in fields.items():
        value = getattr(config, name)
        if name not in chosen and (value != field.absent or name in given):
            having = [entry for entry, kind in owners.items() if name in fields_of(kind)]
            requires(name, value, f"--{chooser} {' or '.join(having)}")


def flags_of(kind: type, known: type | None = None) -> type:
    """Returns a dataclass of the options of a class of the library, a field a flag.

    Args:
        kind: A dataclass; each field whose metadata has `help` is an option.
        known: Flags that there are already: a field of the same name is that flag.

    Raises:
        TypeError: An option has no default, or is of a type that no flag can have.
    """
    shared = {} if known is None else fields_of(known)
    made: list[Any] = []
    for field in getattr(kind, "__dataclass_fields__", {}).values():
        if field.name in shared:
            made.append((field.name, shared[field.name].hint, shared[field.name].default))
        elif "help" in field.metadata:
            if field.default is dataclasses.MISSING:
                raise TypeError(f"{kind.__name__}.{field.name} is a flag: expected a default")
            hint: Any = _type_of_flag(get_type_hints(kind)[field.name])
            help_text = tyro.conf.arg(help=field.metadata["help"])
            made.append((field.name, Annotated[hint, help_text], field.default))
    return dataclasses.make_dataclass("Flags", made, frozen=True)


def _type_of_flag(hint: Any) -> Any:
    """Returns what the command line can give, of a type that a traced array may be of as well."""
    options = (hint,) if get_origin(hint) is Literal or not get_args(hint) else get_args(hint)
    scalars = (int, float, bool, str, NoneType)
    given = [option for option in options if get_origin(option) is Literal or option in scalars]
    if not given:
        raise TypeError(f"{hint}: expected the type of a flag")
    return functools.reduce(operator.or_, given)


def joined(name: str, kinds: Iterable[type]) -> type:
    """Returns a dataclass of the fields of some others; those of the last come first."""
    return dataclasses.make_dataclass(name, (), bases=tuple(kinds), frozen=True)


def options_of(flags: type, config: Any) -> dict[str, Any]:
    """Returns the values that a configuration has for some of its flags."""
    return {name: getattr(config, name) for name in fields_of(flags)}
