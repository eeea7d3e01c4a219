"""Measures what it costs a training to measure itself.

The same training three times in one process: as it is without metrics, counting what arrives on
each link, and remembering its updates too, which the predicted consensus distance is made of. They
take turns, step by step, so that a machine whose speed drifts slows them alike; and now and then in
memory, as where arrays lie matters as much as what is measured. Where others use the machine too,
the processor time of a step tells more than its seconds.
"""

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from launch.benchmarks.results import Row, check_results, median_ratio, write_results
from launch.cli.command_line import Count, read_command
from launch.config import PRESETS, PresetName, TrainConfig
from launch.config_checks import check
from launch.distributed.devices import start_devices
from launch.tasks.source import find_source

_WARM_UP = 10
_IN_PLACE = 25
"""Steps of each kind until they change places."""


@dataclasses.dataclass(frozen=True)
class MetricsConfig:
    """Measure what counting the drops of each link, and remembering updates, cost a step."""

    preset: PresetName = "digits"
    """Data and model."""
    num_workers: tuple[Count, ...] = (16,)
    """Workers."""
    workers_per_device: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Workers that share a device; by default as few as possible."""
    packets: tuple[Count, ...] = (1, 16)
    """Packets that a message is cut into."""
    data_path: Path | None = None
    """File or folder of the data."""
    rounds: Count = 300
    """How many steps of each kind are measured."""
    json: Path | None = None
    """File for the results, for machines."""


def run(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    config = read_command(MetricsConfig, "launch.bench metrics", argv, MetricsConfig())
    check_results(config.json)
    runs = [
        dataclasses.replace(
            PRESETS[config.preset],
            num_workers=n,
            packets=packets,
            workers_per_device=config.workers_per_device,
            data_path=config.data_path,
        )
        for n in config.num_workers
        for packets in config.packets
    ]
    for training in runs:
        check(training)
        find_source(training)
    start_devices(max(config.num_workers), config.workers_per_device)

    print(
        f"{'workers':>7}  {'packets':>7}  {'step ms':>8}  {'counting':>8}"
        f"  {'remembering too':>15}  {'of processor':>12}  {'a line, ms':>10}"
    )
    rows = [_measure(training, config.rounds) for training in runs]
    write_results(config.json, "metrics", config, rows)
    return 0


def _measure(config: TrainConfig, rounds: int) -> Row:
    import jax
    import numpy as np

    from launch.trainer.metrics import measure_links
    from launch.trainer.prediction import predict_together
    from launch.trainer.setup import set_up
    from launch.trainer.step import OneWorker, TrainStep

    with tempfile.TemporaryDirectory() as folder:
        setup = set_up(config, find_source(config), Path(folder))
    mesh = setup.network.mesh
    order = setup.train_step.order(setup.data_key, setup.train.arrays, 0)
    signals = mesh.put(np.zeros(len(mesh.local_workers), np.int32))
    *optimizer, _ = setup.initial.opt_state
    counting = setup.initial._replace(opt_state=tuple(optimizer))
    states = {"plain": counting._replace(links=()), "counting": counting, "all": setup.initial}
    steps = {}
    for name, state in states.items():
        per_epoch = setup.schedule.steps_per_epoch
        step = TrainStep(OneWorker(config, setup.network, setup.task, per_epoch, name == "all"))
        step.compile(setup.run, state, setup.train.arrays, order, signals)
        steps[name] = step

    places = np.random.default_rng(0)
    seconds: dict[str, list[float]] = {name: [] for name in states}
    processor: dict[str, list[float]] = {name: [] for name in states}
    for number in range(_WARM_UP + rounds):
        if number % _IN_PLACE == 0:
            # At first, too: a step gives up the buffers of its state.
            for name in places.permutation(list(states)):
                states[name] = jax.tree.map(jax.numpy.copy, states[name])
        # Who goes first may find warmer caches.
        for name in sorted(states, reverse=number % 2 == 1):
            began, processor_began = time.perf_counter(), time.process_time()
            arguments = setup.run, states[name], setup.train.arrays, order, signals
            states[name], metrics, _ = steps[name](*arguments)
            jax.block_until_ready((states[name], metrics))
            if number >= _WARM_UP:
                seconds[name].append(time.perf_counter() - began)
                processor[name].append(time.process_time() - processor_began)

    lines = []
    for _ in range(10):
        began = time.perf_counter()
        at = setup.schedule.after(1)
        measure_links(setup, at, states["all"])
        predict_together(setup, at, states["all"])
        lines.append(time.perf_counter() - began)

    def milliseconds(times: dict[str, list[float]]) -> dict[str, list[float]]:
        return {name: [round(1e3 * x, 3) for x in values] for name, values in times.items()}

    row: dict[str, Any] = {
        "num_workers": config.num_workers,
        "packets": config.packets,
        "counting_ratio": median_ratio(seconds["counting"], seconds["plain"]),
        "ratio": median_ratio(seconds["all"], seconds["plain"]),
        "processor_counting_ratio": median_ratio(processor["counting"], processor["plain"]),
        "processor_ratio": median_ratio(processor["all"], processor["plain"]),
        "line_milliseconds": round(1e3 * statistics.median(lines), 3),
        "milliseconds": milliseconds(seconds),
        "processor_milliseconds": milliseconds(processor),
    }
    print(
        f"{config.num_workers:>7}  {config.packets:>7}"
        f"  {1e3 * statistics.median(seconds['plain']):>8.2f}"
        f"  {row['counting_ratio'] - 1:>+8.2%}  {row['ratio'] - 1:>+15.2%}"
        f"  {row['processor_ratio'] - 1:>+12.2%}  {row['line_milliseconds']:>10.2f}",
        flush=True,
    )
    return row
