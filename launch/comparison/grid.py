"""The runs of a comparison: flags of launch.train, of which any may have several values.

The flags come in groups. Those of the first group are for every run; each further group is an
alternative, which adds its flags to them or replaces some. A flag with several values is an axis,
and every combination of the axes' values is a setting.
"""

import dataclasses
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, product, starmap
from pathlib import Path
from typing import NamedTuple, get_args

from launch.channels import ChannelFlags
from launch.cli.command_line import UsageError, check_untouched, refuse
from launch.cli.fields import fields_of
from launch.config import ONE_RUN_FLAGS, PRESETS, TrainConfig, parse
from launch.rules import LOSSY

Flags = Mapping[str, Sequence[str]]
"""Values of each flag, as they were given; none of a switch."""

_SINGLE = ("preset", "num_workers", "workers_per_device", "data_path", "download")
"""What all runs of a comparison share: they are trained on the same data and devices."""
_DECIDED = ("seed", "output_dir", "resume", "auto_resume", *ONE_RUN_FLAGS)
"""What the comparison decides itself."""
_OF_CHANNELS = {"channel", *fields_of(ChannelFlags)}


class Setting(NamedTuple):
    """A point of the grid, trained once for every seed.

    Attributes:
        flags: What tells it from the others: names of fields and their values, as given; `""` of a
            switch.
        config: The run, but for its seed and folder.
        digest: Tells its folder from that of another setting whose flags make the same name.
    """

    flags: tuple[tuple[str, str], ...]
    config: TrainConfig
    digest: str = ""

    @property
    def label(self) -> str:
        """What tells it from the others, for people."""
        return ", ".join(starmap(_shown, self.flags)) or "defaults"

    def run(self, folder: Path, seed: int) -> TrainConfig:
        """Returns the training of one seed.

        Args:
            folder: Of the comparison.
            seed: Of the run.
        """
        name = _joined((*chain(*self.flags), self.digest, f"seed-{seed}"))
        return dataclasses.replace(self.config, seed=seed, output_dir=folder / name)


def groups_of(words: Sequence[str]) -> list[dict[str, list[str]]]:
    """Returns the groups of flags, by the names of their fields.

    Args:
        words: Flags of launch.train, the groups divided by `--`.

    Raises:
        UsageError: A word that belongs to no flag, or a value that is given twice.
    """
    groups: list[dict[str, list[str]]] = [{}]
    values: list[str] | None = None
    for word in words:
        if word == "--":
            groups.append({})
            values = None
        elif word.startswith("--"):
            flag, equals, value = word[2:].partition("=")
            name = flag.replace("-", "_")
            if name in groups[-1]:
                refuse(name, "", "once, with all of its values")
            values = groups[-1][name] = [value] * bool(equals)
        elif values is None:
            raise UsageError(f"{word}: expected the flags of launch.train after --")
        elif word in values:
            refuse(name, " ".join([*values, word]), "each value once")
        else:
            values.append(word)
    return groups


def settings_of(axes: Flags, groups: Sequence[Flags]) -> list[Setting]:
    """Returns the settings, each a valid run; those that come to the same are one.

    Algorithms without drops are given no channel where others are: they are there to compare with.

    Args:
        axes: More flags for every run, which count as axes whatever they hold.
        groups: The groups of flags.

    Raises:
        UsageError: A combination that is no valid run, or an axis that cannot be one.
    """
    shared, *alternatives = [{**axes, **groups[0]}, *groups[1:]]
    algorithms = {name for group in (shared, *alternatives) for name in group.get("algorithm", ())}
    found: dict[tuple[tuple[str, str], ...], TrainConfig] = {}
    for alternative in alternatives or [{}]:
        flags = {**shared, **alternative}
        for name in _SINGLE:
            if len(flags.get(name, ())) > 1 or name in alternative:
                refuse(name, " ".join(flags[name]), "one value for all runs")
        varied = {name for name, values in flags.items() if len(values) > 1}
        varied |= {*alternative, *axes}
        for point in product(*(values or ("",) for values in flags.values())):
            chosen = dict(zip(flags, point, strict=True))
            if algorithms.intersection(LOSSY) and _is_reliable(chosen):
                own = alternative if "algorithm" in alternative else {}
                others = chosen.keys() & _OF_CHANNELS - own.keys()
                chosen = {name: value for name, value in chosen.items() if name not in others}
            telling = tuple((name, value) for name, value in chosen.items() if name in varied)
            if telling not in found:
                found[telling] = _parsed(chosen.items(), flags)
    names = [_joined(chain(*flags)) for flags in found]
    return [
        Setting(flags, config, _digest(flags) if names.count(name) > 1 else "")
        for name, (flags, config) in zip(names, found.items(), strict=True)
    ]


def _joined(words: Iterable[str]) -> str:
    """Returns the words as a name of a folder, of letters, digits, dots and dashes alone."""
    return "-".join(re.sub(r"[^A-Za-z0-9.]+", "-", word).strip("-") for word in words if word)


def _digest(flags: tuple[tuple[str, str], ...]) -> str:
    return hashlib.sha256(repr(flags).encode()).hexdigest()[:8]


def _shown(name: str, value: str) -> str:
    if name in ("algorithm", "channel"):
        return value
    if Path in get_args(fields_of(TrainConfig)[name].type):
        return Path(value).name
    return f"{name.replace('_', ' ')} {value}".rstrip()


def _is_reliable(chosen: Mapping[str, str]) -> bool:
    return chosen.get("algorithm", LOSSY[0]) not in LOSSY


def _parsed(chosen: Iterable[tuple[str, str]], given: Flags) -> TrainConfig:
    words = []
    for name, value in chosen:
        words += [f"--{name.replace('_', '-')}", *[value] * bool(given[name])]
    config = parse(words)
    check_untouched(config, PRESETS[config.preset], _DECIDED)
    return config
