"""Prints how many packet-hops the core simulates a second."""

import dataclasses
import statistics
import time
from collections.abc import Sequence
from typing import Annotated

from launch.cli.command_line import Count, Within, read_command
from rps_jax.colocation import Settings, simulate, with_discipline


@dataclasses.dataclass(frozen=True)
class BenchConfig:
    """Measure how fast the core is, on one core of the machine.

    A packet-hop is a packet that comes to a queue, and is transmitted or dropped there. The time
    is that of the whole simulation, the traffic's generation included; medians over the rounds.
    """

    rounds: Count = 7
    """How often each setting is measured."""
    duration: Annotated[float, Within(0.1, 1000, "in [0.1, 1000] seconds")] = 2.8
    """Simulated seconds of each."""


def run(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    config = read_command(BenchConfig, "launch.colocate bench", argv, BenchConfig())
    base = Settings(duration=config.duration, warmup=0.0)
    settings = {
        "default": base,
        "web-rate 10000": dataclasses.replace(base, web_rate=10_000.0),
        "poisson": dataclasses.replace(base, learning="poisson"),
        "learning none": dataclasses.replace(base, learning="none"),
        "ideal": dataclasses.replace(base, transport="ideal"),
        "strict-priority": with_discipline(base, "strict-priority"),
        "drr": with_discipline(base, "drr"),
    }
    began = time.perf_counter()
    simulate(dataclasses.replace(base, duration=0.01))
    print(f"compiled or loaded in {time.perf_counter() - began:.1f} s")
    print(f"{'':<18}{'packet-hops':>12}{'million hops/s':>18}")
    rates: dict[str, list[float]] = {name: [] for name in settings}
    hops = {}
    for _ in range(config.rounds):
        for name, setting in settings.items():
            result = simulate(setting)
            rates[name].append(result.packet_hops / result.wall_seconds / 1e6)
            hops[name] = result.packet_hops
    for name, measured in rates.items():
        print(f"{name:<18}{hops[name]:>12,}{statistics.median(measured):>18.1f}")
    return 0
