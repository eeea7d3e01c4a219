"""Measures how an exchange among workers that share one device grows with their number.

Numbers of workers and alternatives take turns, round by round, so that a machine whose speed drifts
slows them alike.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from launch.benchmarks.results import Row, check_results, device, write_results
from launch.cli.command_line import Count, Within, check_memory, read_command
from launch.distributed.devices import start_devices

_LEAVES = 30
"""A model of many leaves, as real ones are: as many as ResNet-8 has."""


@dataclasses.dataclass(frozen=True)
class ScaleConfig:
    """Measure how an exchange among workers on one device grows with their number."""

    num_workers: Annotated[tuple[int, ...], Within(1, 2**14)] = (16, 32, 64, 128, 256, 512, 1024)
    """Workers that share the device."""
    num_parameters: Annotated[int, Within(1, 2**40)] = 75_000
    """Size of a worker's model; by default, of ResNet-8."""
    rounds: Count = 10
    """How often each is measured."""
    json: Path | None = None
    """File for the results, for machines."""


class _Exchange(NamedTuple):
    """A compiled exchange of some workers.

    Attributes:
        workers: How many.
        rule: What it does.
        compile_seconds: How long lowering and compiling it took.
        call: Runs it, and waits for it; returns the seconds that it took.
    """

    workers: int
    rule: str
    compile_seconds: float
    call: Callable[[], float]


def run(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    config = read_command(ScaleConfig, "launch.bench scale", argv, ScaleConfig())
    check_results(config.json)
    # Of float32, the models before and after, of every number of workers, and one in between; n
    # draws for each worker.
    models = 2 * sum(config.num_workers) + max(config.num_workers)
    check_memory("num_parameters", config.num_parameters, 4 * models * config.num_parameters)
    check_memory("num_workers", max(config.num_workers), 4 * 4 * max(config.num_workers) ** 2)
    start_devices(1, 1)

    exchanges = [
        exchange for n in config.num_workers for exchange in _compile(n, config.num_parameters)
    ]
    seconds: list[list[float]] = [[] for _ in exchanges]
    for turn in range(config.rounds + 1):
        for exchange, measured in zip(exchanges, seconds, strict=True):
            elapsed = exchange.call()
            if turn:  # The first is the warm-up.
                measured.append(elapsed)

    print(f"{'workers':>7}  {'':<16}{'median ms':>10}{'us a worker':>13}{'compile s':>11}")
    rows = [_row(*measured) for measured in zip(exchanges, seconds, strict=True)]
    write_results(config.json, "scale", config, rows, **device())
    return 0


def _compile(num_workers: int, num_parameters: int) -> list[_Exchange]:
    import jax
    import numpy as np
    from jax.sharding import PartitionSpec as P

    import rps_jax as rps

    mesh = rps.worker_mesh(num_workers, num_workers)
    axis, key, channel = mesh.axis_name, jax.random.key(0), rps.Bernoulli(0.1)

    def average_models(params: Any, step: Any) -> Any:
        delivery, _ = rps.draw_exchange(channel, (), key, step, axis, "random")
        return rps.average_models(params, delivery, axis)

    def draw(params: Any, step: Any) -> Any:
        del params
        return rps.draw_exchange(channel, (), key, step, axis, "random")[0]

    def pmean(params: Any, step: Any) -> Any:
        del step
        return jax.lax.pmean(params, axis)

    rng = np.random.default_rng(0)
    sizes = np.diff(np.linspace(0, num_parameters, _LEAVES + 1, dtype=int)).tolist()
    params = mesh.put([rng.random((num_workers, size), np.float32) for size in sizes])
    step = jax.device_put(np.int32(0), mesh.sharding(P()))

    def compiled(name: str, rule: Callable[..., Any]) -> _Exchange:
        program = mesh.spmd(rule, (P("workers"), P()), P("workers"))
        began = time.perf_counter()
        executable = program.lower(params, step).compile()
        compile_seconds = time.perf_counter() - began

        def call() -> float:
            began = time.perf_counter()
            jax.block_until_ready(executable(params, step))
            return time.perf_counter() - began

        return _Exchange(num_workers, name, compile_seconds, call)

    rules = {"average_models": average_models, "its drops": draw, "lax.pmean": pmean}
    return [compiled(name, rule) for name, rule in rules.items()]


def _row(exchange: _Exchange, seconds: list[float]) -> Row:
    """Shows and returns what was measured of an exchange."""
    median = statistics.median(seconds)
    print(
        f"{exchange.workers:>7}  {exchange.rule:<16}{1e3 * median:>10.2f}"
        f"{1e6 * median / exchange.workers:>13.1f}{exchange.compile_seconds:>11.2f}",
        flush=True,
    )
    return {
        "workers": exchange.workers,
        "alternative": exchange.rule,
        "microseconds_per_worker": 1e6 * median / exchange.workers,
        "milliseconds": [1e3 * value for value in seconds],
        "compile_seconds": exchange.compile_seconds,
    }
