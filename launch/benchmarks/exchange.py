"""Measures what the lossy exchange costs beside a plain all-reduce.

The alternatives take turns, round by round, so that a machine whose speed drifts slows them alike;
what is printed are medians, and the median of the ratios of each round to the plain all-reduce: of
the whole model as one array between devices, leaf by leaf among workers that share one device.

With `--processes` the workers are shared by processes of this machine, which take the same rounds
at the same time; what the first has measured is kept.
"""

import dataclasses
import multiprocessing
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Annotated, Any

from launch.benchmarks.results import Row, check_results, device, median_ratio, write_results
from launch.cli.command_line import (
    CommandError,
    Count,
    Within,
    check_memory,
    expect,
    read_command,
)
from launch.distributed.devices import start_devices
from launch.distributed.ports import free_port


@dataclasses.dataclass(frozen=True)
class ExchangeConfig:
    """Measure what the lossy exchange costs beside a plain all-reduce."""

    num_workers: Count = 8
    """Workers; on a CPU, each is a device."""
    workers_per_device: int | None = None
    """Workers that share a device; by default as few as possible."""
    processes: Annotated[int, Within(1, 64)] = 1
    """Processes of this machine that share the workers, and meet over TCP; on CPUs."""
    num_parameters: Annotated[tuple[int, ...], Within(1, 2**40)] = (75_000, 270_000, 1_700_000)
    """Sizes of model: of ResNet-8, ResNet-20 and ResNet-110."""
    rounds: Count = 30
    """How often each alternative is measured."""
    json: Path | None = None
    """File for the results, for machines."""


def run(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    config = read_command(ExchangeConfig, "launch.bench exchange", argv, ExchangeConfig())
    check_results(config.json)
    each, n = config.workers_per_device, config.num_workers
    expect("processes", config.processes, n % config.processes == 0, f"a divisor of {n} workers")
    here = n // config.processes
    divides = each is None or (each >= 1 and here % each == 0)
    expect("workers_per_device", each, divides, f"a divisor of {here} workers")
    most = max(config.num_parameters)
    # Of float32: the models before and after, their blocks and averages; n draws for each worker.
    check_memory("num_workers", n, 4 * 4 * n**2)
    check_memory("num_parameters", most, 4 * 4 * n * most)

    print(f"{'parameters':>10}  {'':<28}{'median ms':>10}  {'ratio':>6}")
    if config.processes == 1:
        start_devices(n, each)
        rows, on = _measure_all(config), device()
    else:
        rows, on = _measure_over_processes(config)
    write_results(config.json, "exchange", config, rows, **on)
    return 0


def _measure_over_processes(config: ExchangeConfig) -> tuple[list[Row], dict[str, Any]]:
    """Returns what the first of the processes has measured, and on what; it prints it, too."""
    coordinator = f"127.0.0.1:{free_port()}"
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(config.processes, spawn) as processes:
        measured = [
            processes.submit(_of_process, config, coordinator, number)
            for number in range(config.processes)
        ]
        try:
            first, *_ = [each.result() for each in measured]
        except BrokenProcessPool as error:
            raise CommandError("one of the processes has died") from error
    return first


def _of_process(
    config: ExchangeConfig, coordinator: str, number: int
) -> tuple[list[Row], dict[str, Any]]:
    import jax

    start_devices(config.num_workers // config.processes, config.workers_per_device)
    jax.distributed.initialize(coordinator, config.processes, number)
    return _measure_all(config), device()


def _measure_all(config: ExchangeConfig) -> list[Row]:
    return [row for size in config.num_parameters for row in _measure(config, size)]


def _measure(config: ExchangeConfig, num_parameters: int) -> list[Row]:
    import jax
    import numpy as np
    from jax.flatten_util import ravel_pytree
    from jax.sharding import PartitionSpec as P

    import rps_jax as rps

    mesh = rps.worker_mesh(config.num_workers, config.workers_per_device)
    axis, key, channel = mesh.axis_name, jax.random.key(0), rps.Bernoulli(0.1)

    def exchange(rule: Callable[..., Any], assignment: Any = "random") -> Callable[..., Any]:
        def one_worker(params: Any, step: Any) -> Any:
            delivery, _ = rps.draw_exchange(channel, (), key, step, axis, assignment)
            return rule(params, delivery, axis)

        return one_worker

    def flat_pmean(params: Any, step: Any) -> Any:
        flat, unravel = ravel_pytree(params)
        return unravel(jax.lax.pmean(flat, axis))

    alternatives = {
        "lax.pmean, one array": flat_pmean,
        "lax.pmean, leaf by leaf": lambda params, step: jax.lax.pmean(params, axis),
        "average_models": exchange(rps.average_models),
        "average_models, fixed": exchange(rps.average_models, "fixed"),
        "average_gradients": exchange(rps.average_gradients),
    }
    # A model of many leaves, as real ones are.
    sizes = np.diff(np.linspace(0, num_parameters, 61, dtype=int)).tolist()
    rng = np.random.default_rng(0)
    params = mesh.put(
        [rng.normal(size=(len(mesh.local_workers), n)).astype(np.float32) for n in sizes]
    )
    programs = {
        name: mesh.spmd(function, (P("workers"), P()), P("workers"))
        for name, function in alternatives.items()
    }
    for program in programs.values():
        jax.block_until_ready(program(params, 0))
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for step in range(config.rounds):
        for name, program in programs.items():
            began = time.perf_counter()
            jax.block_until_ready(program(params, step))
            seconds[name].append(time.perf_counter() - began)

    # As fast as it goes: some backends do not combine leaves, and to join them takes passes of its
    # own where nothing is sent.
    joined = mesh.mesh.size > 1
    plain = seconds["lax.pmean, one array" if joined else "lax.pmean, leaf by leaf"]
    rows = []
    for name, measured in seconds.items():
        ratio = median_ratio(measured, plain)
        milliseconds = 1e3 * statistics.median(measured)
        if jax.process_index() == 0:
            line = f"{num_parameters:>10,}  {name:<28}{milliseconds:>10.2f}  {ratio:>6.2f}"
            print(line, flush=True)
        row = {"num_parameters": num_parameters, "alternative": name, "ratio": ratio}
        rows.append({**row, "milliseconds": [1e3 * value for value in measured]})
    return rows
