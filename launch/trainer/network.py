"""The network that the exchanges of a training go over, as the trainer sees it."""

import dataclasses
from typing import Any, Protocol

import jax

import rps_jax as rps
from launch.config import TrainConfig
from launch.rules import make_rule
from rps_jax.carrier import make_carrier


class Network(Protocol):
    """What differs between a simulated and a real network."""

    @property
    def mesh(self) -> rps.WorkerMesh:
        """Where the workers of this process's programs are."""
        ...

    @property
    def workers(self) -> range:
        """Which of the run's workers this process has."""
        ...

    @property
    def waits(self) -> bool:
        """Whether an exchange waits for other processes while this one's processor is free."""
        ...

    def worker(self) -> jax.Array:
        """Returns the index of the worker whose program calls this."""
        ...

    def carrier(self, channel: Any) -> rps.Carrier:
        """Returns what carries the exchanges of a step.

        Args:
            channel: Where drops come from, traced; a real network has its own.
        """
        ...

    def catch_up(self, state: rps.TrainState, step: int) -> tuple[rps.TrainState, int]:
        """Returns the state after a step, and the steps taken: more than one where others have.

        Args:
            state: The workers' state.
            step: Steps taken.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Simulated:
    """Drops drawn from a channel; the workers take every step together.

    Attributes:
        mesh: All workers of the run.
        rule: Decides whether the exchanges go over the lossy network.
        assignment: Which worker averages which block.
    """

    mesh: rps.WorkerMesh
    rule: rps.Rule
    assignment: Any

    @classmethod
    def of(cls, config: TrainConfig) -> "Simulated":
        """Lays the workers of a run over the devices.

        Raises:
            ValueError: The devices cannot hold them.
        """
        mesh = rps.worker_mesh(config.num_workers, config.workers_per_device)
        return cls(mesh, make_rule(config), config.assignment)

    @property
    def workers(self) -> range:
        """Those on this process's devices."""
        return self.mesh.local_workers

    @property
    def waits(self) -> bool:
        """Whether CPUs are to exchange over several processes."""
        on_cpus = self.mesh.mesh.devices.flat[0].platform == "cpu"
        return on_cpus and jax.process_count() > 1

    def worker(self) -> jax.Array:
        """Returns its place on the mesh."""
        return jax.lax.axis_index(self.mesh.axis_name)

    def carrier(self, channel: Any) -> rps.Carrier:
        """Returns collectives over the mesh."""
        return make_carrier(self.rule, channel, self.mesh.axis_name, self.assignment)

    def catch_up(self, state: rps.TrainState, step: int) -> tuple[rps.TrainState, int]:
        """Returns both as they are: nobody is ahead."""
        return state, step
