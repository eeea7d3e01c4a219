"""The compiled training step over all workers, and the order of their examples."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import PartitionSpec as P

import rps_jax as rps
from data import epoch_order, take
from launch.config import TrainConfig, records_steps
from launch.distributed.programs import compile_or_find
from launch.rules import make_rule
from launch.tasks import Task
from launch.trainer.network import Network
from launch.trainer.optimizer import make_optimizer
from launch.trainer.overlapped_programs import OverlappedPrograms


class Run(NamedTuple):
    """What tells a run from others of the same program; a pytree.

    Attributes:
        channel: Where drops come from.
        learning_rate: Rate before the schedule lowers it.
        total_steps: Steps of the whole run.
    """

    channel: Any
    learning_rate: Any
    total_steps: Any


@dataclasses.dataclass(frozen=True, eq=False)
class OneWorker:
    """What one worker computes: the programs, before they are laid out over the workers.

    Attributes:
        config: The run's configuration.
        network: Where the workers are, and what their exchanges go over.
        task: Data and model.
        steps_per_epoch: Batches that every worker takes of its examples.
        remembers: Whether the optimizer remembers updates; see `make_optimizer`.
    """

    config: TrainConfig
    network: Network
    task: Task
    steps_per_epoch: int
    remembers: bool

    def start_epoch(self, key: jax.Array, arrays: Any, epoch: jax.Array) -> jax.Array:
        """Returns the order in which it takes its examples in an epoch."""
        for part in (self.network.worker(), epoch):
            key = jax.random.fold_in(key, part)
        return epoch_order(key, arrays["weight"])

    def train_step(
        self, run: Run, state: rps.TrainState, arrays: Any, order: Any, signal: Any
    ) -> Any:
        """Takes a step."""
        batch = self._batch(state, arrays, order)
        return *self._step(run)(self._begin(state), batch), self._greatest(signal)

    def exchange(self, run: Run, state: rps.TrainState) -> Any:
        """Takes the part of an overlapping step that exchanges."""
        return self._step(run).exchange(self._begin(state))

    def local(self, run: Run, state: rps.TrainState, arrays: Any, order: Any) -> Any:
        """Takes the part that computes beside it."""
        return self._step(run).local(state, self._batch(state, arrays, order))

    def join(
        self, exchanged: Any, changed: Any, run: Run, state: rps.TrainState, signal: Any
    ) -> Any:
        """Takes the part that adds up both."""
        return *self._step(run).join(state, exchanged, changed), self._greatest(signal)

    def _step(self, run: Run) -> Any:
        config = self.config
        return rps.make_step(
            self.task.loss_fn,
            make_optimizer(config, run.learning_rate, run.total_steps, remembers=self.remembers),
            make_rule(config),
            self.network.carrier(run.channel),
            model_state_policy=config.model_state,
            record=records_steps(config),
        )

    def _begin(self, state: rps.TrainState) -> rps.TrainState:
        """Returns the state whose links are counted anew, where an epoch begins."""
        if not state.links:
            return state
        starts = state.step % self.steps_per_epoch == 0
        return state._replace(links=state.links.begin_anew(starts))

    def _batch(self, state: rps.TrainState, arrays: Any, order: Any) -> Any:
        size, place = self.config.batch_size, state.step % self.steps_per_epoch
        return take(arrays, order, place * size, size)

    def _greatest(self, signal: jax.Array) -> jax.Array:
        return jax.lax.pmax(signal, self.network.mesh.axis_name)


class TrainStep:
    """The step of all workers.

    Compiled once for all runs that differ only in seed, drops, learning rate or length: these are
    arguments, in the state, the channel, and the `Run`.
    """

    def __init__(self, worker: OneWorker) -> None:
        """Lays out the programs; nothing is compiled yet.

        Args:
            worker: What each worker computes.
        """
        mesh, each, results = worker.network.mesh, P("workers"), (P("workers"), P(), P())
        self._mesh = mesh
        self._start_epoch = mesh.spmd(worker.start_epoch, (P(), each, P()), each)
        self._compile: Callable[..., Any]
        if make_rule(worker.config).overlaps and worker.network.waits:
            self._compile = OverlappedPrograms(
                mesh.spmd(worker.exchange, (P(), each), each),
                mesh.spmd(worker.local, (P(), each, each, each), each),
                mesh.spmd(
                    worker.join, (each, each, P(), each, each), results, donate_argnums=(0, 1, 3)
                ),
            ).compiled
        else:
            step = mesh.spmd(worker.train_step, (P(), *(each,) * 4), results, donate_argnums=(1,))
            self._compile = lambda *arguments: compile_or_find(step.lower(*arguments), mesh.mesh)
        self._compiled: dict[Any, Any] = {}

    def shared(self, tree: Any) -> Any:
        """Puts values that every process has on all devices."""

        def put(value: Any) -> jax.Array:
            array = np.asarray(jnp.asarray(value))  # In the types of JAX, not in 64 bits.
            sharding = self._mesh.sharding(P())
            return jax.make_array_from_callback(array.shape, sharding, array.__getitem__)

        return jax.tree.map(put, tree)

    def order(self, key: jax.Array, arrays: Any, epoch: int) -> jax.Array:
        """Returns the order in which each worker takes its examples in an epoch.

        Args:
            key: The run's key for its data.
            arrays: The training examples, `[num_workers, capacity, ...]`.
            epoch: Epochs taken.
        """
        return self._start_epoch(key, arrays, epoch)

    def compile(self, *arguments: Any) -> None:
        """Compiles the step for arguments like these; returns when every process has.

        JAX's CPU collectives (Gloo) give up on processes that come 30 seconds late.
        """
        kind = self._kind(arguments)
        if kind not in self._compiled:
            self._compiled[kind] = self._compile(*arguments)
        multihost_utils.sync_global_devices("compiled")

    def __call__(self, *arguments: Any) -> tuple[rps.TrainState, rps.StepMetrics, jax.Array]:
        """Takes a step; the buffers of the state are given up.

        Args:
            arguments: A `Run` on the devices, the state, the training examples, their order, and a
                number for each worker, `[num_workers]`: zero, or the signal that its process has
                received.

        Returns:
            The state, the metrics, and the greatest of the numbers.
        """
        state, metrics, signal = self._compiled[self._kind(arguments)](*arguments)
        return state, metrics, signal

    def _kind(self, arguments: tuple[Any, ...]) -> Any:
        # Of one mesh and one configuration, the channel and the workers' shares differ in shape.
        run, _, arrays, *_ = arguments
        leaves, structure = jax.tree.flatten((run, arrays))
        return structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves)
