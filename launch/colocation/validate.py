"""Prints what queueing theory says beside what the simulation measures."""

import dataclasses
from collections.abc import Sequence
from typing import Annotated

from launch.cli.command_line import Count, Within, read_command
from rps_jax.colocation import layout, validation


@dataclasses.dataclass(frozen=True)
class ValidateConfig:
    """Hold the simulation to the closed forms of queueing theory.

    Waits are in microseconds, drops in percent, both at the hosts' network cards; +- is the
    half-width of a 95% confidence interval. Exit status 1 if one is off by 2%, or by 4 standard
    errors.
    """

    seeds: Count = 3
    """Simulations of each, of seeds 1, 2, ..."""
    duration: Annotated[float, Within(0.01, 1000, "in [0.01, 1000] seconds")] = 4.0
    """Simulated seconds of each; shorter ones may be too noisy for 2%."""


def run(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    config = read_command(ValidateConfig, "launch.colocate validate", argv, ValidateConfig())
    print(f"{'':<31}{'expected':>11}{'measured':>20}{'off by':>9}")
    holds = True
    for case in validation.cases():
        found = validation.compare(case, seeds=config.seeds, duration=config.duration)
        scale, unit = (1e6, "us") if case.counted == layout.WAITED else (100, "%")
        holds &= found.holds
        print(
            f"{case.name:<31}{scale * case.expected:>8.3f} {unit:<2}"
            f"{scale * found.measured:>11.3f} ±{scale * found.half_width:>6.3f}"
            f"{100 * found.deviation:>+9.2f}%{'' if found.holds else '  FAILS'}",
            flush=True,
        )
    return 0 if holds else 1
