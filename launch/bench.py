"""Measures what the lossy exchange costs beside a plain all-reduce.

    python -m launch.bench --num-workers 8 --num-parameters 270000 1700000

The alternatives take turns, round by round, so that a machine whose speed drifts slows them alike;
what is printed are medians, and the median of the ratios of each round.
"""

import dataclasses
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Annotated, Any

from launch.cli.command_line import (
    Count,
    Within,
    check_memory,
    exit_status,
    expect,
    read_command,
)
from launch.distributed.devices import start_devices


@dataclasses.dataclass(frozen=True)
class BenchConfig:
    """Measure what the lossy exchange costs beside a plain all-reduce."""

    num_workers: Count = 8
    """Workers; on a CPU, each is a device."""
    workers_per_device: int | None = None
    """Workers that share a device; by default as few as possible."""
    num_parameters: Annotated[tuple[int, ...], Within(1, 2**40)] = (75_000, 270_000, 1_700_000)
    """Sizes of model: of ResNet-8, ResNet-20 and ResNet-110."""
    rounds: Count = 30
    """How often each alternative is measured."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    return exit_status(lambda: _run(argv))


def _run(argv: Sequence[str] | None) -> int:
    config = read_command(BenchConfig, "launch.bench", argv, BenchConfig())
    each = config.workers_per_device
    divides = each is None or (each >= 1 and config.num_workers % each == 0)
    expect("workers_per_device", each, divides, f"a divisor of {config.num_workers} workers")
    n, most = config.num_workers, max(config.num_parameters)
    # Of float32: the models before and after, their blocks and averages; n draws for each worker.
    check_memory("num_workers", n, 4 * 4 * n**2)
    check_memory("num_parameters", most, 4 * 4 * n * most)
    start_devices(config.num_workers, config.workers_per_device)

    print(f"{'parameters':>10}  {'':<28}{'median ms':>10}  {'ratio':>6}")
    for num_parameters in config.num_parameters:
        _measure(config, num_parameters)
    return 0


def _measure(config: BenchConfig, num_parameters: int) -> None:
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

    # The plain all-reduce comes first: of the model as one array, as the exchange has it, and of
    # each leaf by itself, which some backends do not combine.
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

    plain = seconds["lax.pmean, one array"]
    for name, measured in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(measured, plain, strict=True))
        milliseconds = 1e3 * statistics.median(measured)
        print(f"{num_parameters:>10,}  {name:<28}{milliseconds:>10.2f}  {ratio:>6.2f}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
