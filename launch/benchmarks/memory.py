"""Says what memory a training step of plain SGD takes, in copies of the model.

Nothing is run: it is the compiled program's own analysis. The model is a chain of matrices that
sees one example, so that its activations are next to nothing. The state is donated, as in
`launch.train`.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from launch.benchmarks.results import Row, check_results, device, write_results
from launch.cli.command_line import Count, Within, expect, read_command
from launch.distributed.devices import start_devices

_ALGORITHMS = ("local", "all-reduce", "gradient-averaging", "rps")


@dataclasses.dataclass(frozen=True)
class MemoryConfig:
    """Say what memory a training step takes, in copies of the model."""

    num_workers: Count = 8
    """Workers; on a CPU, on as many devices as they need."""
    workers_per_device: Annotated[tuple[int, ...], Within(1, 4096)] = (1, 2, 8)
    """Workers that share a device."""
    layers: Count = 20
    """Matrices of the model."""
    width: Count = 128
    """Rows and columns of each."""
    json: Path | None = None
    """File for the results, for machines."""


def run(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    config = read_command(MemoryConfig, "launch.bench memory", argv, MemoryConfig())
    check_results(config.json)
    n = config.num_workers
    for each in config.workers_per_device:
        expect("workers_per_device", each, n % each == 0, f"divisors of {n} workers")
    start_devices(n, min(config.workers_per_device))
    print(f"{'':<20}{'workers a device':>16}{'state':>8}{'beside it':>11}{'copies':>8}")
    rows = [
        _row(config, algorithm, each)
        for each in config.workers_per_device
        for algorithm in _ALGORITHMS
    ]
    write_results(config.json, "memory", config, rows, **device())
    return 0


def _row(config: MemoryConfig, algorithm: str, each: int) -> Row:
    """Returns the copies that a step takes, and prints them."""
    memory = _compile(config, algorithm, each).memory_analysis()
    model = 4 * config.layers * config.width**2 * each
    # Of a donated argument, the result is where it was.
    state = (
        memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    ) / model
    beside = memory.temp_size_in_bytes / model
    print(
        f"{algorithm:<20}{each:>16}{state:>8.2f}{beside:>11.2f}{state + beside:>8.2f}", flush=True
    )
    row = {"algorithm": algorithm, "workers_per_device": each}
    return {**row, "state": state, "beside": beside, "copies": state + beside}


def _compile(config: MemoryConfig, algorithm: str, each: int) -> Any:
    """Returns the compiled step of all workers."""
    import jax
    import jax.numpy as jnp
    import optax
    from jax.sharding import PartitionSpec as P

    import rps_jax as rps

    mesh = rps.worker_mesh(config.num_workers, each)
    optimizer, channel = optax.sgd(0.1), rps.Bernoulli(0.1)

    def loss(params: Any, model_state: Any, batch: Any, key: Any) -> Any:
        del key
        for kernel in params:
            batch = jnp.tanh(batch @ kernel)
        return jnp.sum(batch), model_state

    def state() -> Any:
        params = [jnp.zeros((config.width, config.width))] * config.layers
        return rps.init_train_state(
            params, (), optimizer, channel, config.num_workers, algorithm=algorithm
        )

    step = rps.make_train_step(loss, optimizer, channel, mesh.axis_name, algorithm=algorithm)
    of_worker = jax.eval_shape(state), jax.ShapeDtypeStruct((1, config.width), jnp.float32)
    of_all = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
            (config.num_workers, *x.shape), x.dtype, sharding=mesh.sharding()
        ),
        of_worker,
    )
    own = P("workers")
    return mesh.spmd(step, (own, own), (own, P()), donate_argnums=(0,)).lower(*of_all).compile()
