"""How a result was made: the command, the machine, and the versions."""

import dataclasses
import json
import os
import platform
import shlex
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any


def machine() -> str:
    """Returns the processor's name, where the system tells, and how many cores it has."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return f"{next(names, platform.machine())}, {os.cpu_count()} cores"


def versions(*packages: str) -> dict[str, str]:
    """Returns the versions of Python and of some packages."""
    return {name: version(name) for name in packages} | {"python": platform.python_version()}


def trained_on(summaries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns on what some runs were trained, which need not be the machine that shows them.

    Args:
        summaries: One of each run.

    Returns:
        An entry a kind of devices, machine and versions, with how many runs they have trained, and
        in how many seconds.
    """
    kinds: dict[str, dict[str, Any]] = {}
    for summary in summaries:
        kind = {
            name: summary[name] for name in ("devices", "machine", "versions") if name in summary
        }
        nothing = {"trainings": 0, "wall_seconds": 0.0}
        known = kinds.setdefault(json.dumps(kind, sort_keys=True), kind | nothing)
        known["trainings"] += 1
        known["wall_seconds"] = round(known["wall_seconds"] + summary["wall_seconds"], 2)
    return list(kinds.values())


def command_line(
    module: str, config: Any, leave_out: Sequence[str], flags: Sequence[str] = ()
) -> str:
    """Returns the command that a configuration is of, with all its options.

    Args:
        module: What is run, as in `python -m MODULE`.
        config: A dataclass, a field a flag.
        leave_out: Fields that do not decide the result.
        flags: Of launch.train, which came after "--".
    """
    options = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name not in leave_out and value is not None and value is not False:
            values = () if value is True else value if isinstance(value, tuple) else (value,)
            shown = (str(x).removesuffix(".0") for x in values)
            options += [f"--{field.name.replace('_', '-')}", *shown]
    after = ["--", *flags] if flags else []
    return shlex.join(["python", "-m", *module.split(), *options, *after])
