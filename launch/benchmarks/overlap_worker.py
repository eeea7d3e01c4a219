"""A worker on a host of the bed that takes training steps, whose exchanges overlap or do not."""

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

import rps_jax as rps
from launch.benchmarks.group import COORDINATOR_PORT, FIRST_PORT, answer_requests
from launch.config import TrainConfig, parse
from launch.rules import make_rule
from launch.tasks.source import find_source
from launch.trainer.network import Network, Simulated
from launch.trainer.setup import Setup, set_up
from launch.wire.worker import UdpNetwork
from rps_jax import transport

WAYS = {
    "no exchange": "local",
    "rps": "rps",
    "overlap, one program": "overlap",
    "overlap": "overlap",
    "rps over UDP": "rps",
    "overlap over UDP": "overlap",
}
"""The alternatives, and their algorithms; over TCP where nothing else is said."""


def of_way(way: str, flags: Sequence[str], num_workers: int) -> TrainConfig:
    """Returns the configuration of an alternative, with these flags of launch.train.

    Raises:
        UsageError: They do not go with it.
    """
    over_udp, algorithm = way.endswith("UDP"), WAYS[way]
    beside = () if over_udp or algorithm == "local" else ("--drop-rate", "0.1")
    return parse(
        [*flags, *beside, "--algorithm", algorithm, "--num-workers", str(num_workers)],
        "udp" if over_udp else "collectives",
    )


class _InOne(Simulated):
    """A network whose exchanges are in one program with the local step."""

    @property
    def waits(self) -> bool:
        """No, whatever they do."""
        return False


class Worker:
    """What a worker can be asked; answers are what JSON can hold."""

    def __init__(
        self, host: int, addresses: list[str], flags: list[str], key: str, link_rate: float
    ) -> None:
        """Meets the others, and compiles a step of each kind.

        Args:
            host: The number of this worker.
            addresses: Of all hosts.
            flags: Of launch.train.
            key: Of the datagrams, in hexadecimal digits.
            link_rate: Of the datagrams, in bits a second.
        """
        jax.distributed.initialize(f"{addresses[0]}:{COORDINATOR_PORT}", len(addresses), host)
        self._alternatives = {}
        for number, way in enumerate(WAYS):
            config = of_way(way, flags, len(addresses))
            network: Network
            if config.network == "udp":
                places = [(address, FIRST_PORT + number) for address in addresses]
                joined = transport.join(places, host, bytes.fromhex(key), link_rate=link_rate)
                mesh = rps.worker_mesh(1, devices=jax.local_devices())
                network = UdpNetwork(mesh, joined.__enter__(), make_rule(config).every)
            else:
                network = (_InOne if way.endswith("one program") else Simulated).of(config)
            with tempfile.TemporaryDirectory() as scratch:
                setup = set_up(config, find_source(config), Path(scratch), network)
            self._alternatives[way] = _Training(setup)

    def steps(self, way: str, count: int) -> float:
        """Takes steps of a kind, all workers at the same time; returns the seconds a step."""
        multihost_utils.sync_global_devices(way)
        began = time.perf_counter()
        self._alternatives[way].steps(count)
        return (time.perf_counter() - began) / count

    def num_parameters(self) -> int:
        """Returns the size of the model."""
        params = self._alternatives["rps"].state.params
        return sum(leaf.size for leaf in jax.tree.leaves(params)) // jax.process_count()


class _Training:
    """A training that goes on as long as it is asked to.

    Attributes:
        state: The workers' state.
    """

    def __init__(self, setup: Setup) -> None:
        self._setup, self.state, self._step = setup, setup.initial, 0
        workers = len(setup.network.mesh.local_workers)
        self._no_signal = setup.network.mesh.put(np.zeros(workers, np.int32))
        self._order = setup.train_step.order(setup.data_key, setup.train.arrays, 0)
        setup.train_step.compile(*self._arguments())

    def steps(self, count: int) -> None:
        """Takes so many, and waits for them as the trainer does: for each while the next runs."""
        pending = None
        for _ in range(count):
            previous = pending
            self.state, *pending = self._setup.train_step(*self._arguments())
            taken = self._step + 1
            self.state, self._step = self._setup.network.catch_up(self.state, taken)
            jax.block_until_ready(previous)
        jax.block_until_ready((pending, self.state))

    def _arguments(self) -> tuple[Any, ...]:
        setup = self._setup
        return setup.run, self.state, setup.train.arrays, self._order, self._no_signal


if __name__ == "__main__":
    answer_requests(Worker)
