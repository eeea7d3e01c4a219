"""One worker of a run over UDP: trains, and reports to the coordinator."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import rps_jax as rps
from data import Source
from launch.cli.command_line import UsageError
from launch.config import TrainConfig
from launch.config_file import CONFIG_FILE
from launch.reports.progress import Progress
from launch.rules import make_rule
from launch.trainer.checkpoints import Checkpoints
from launch.trainer.hook import Hook
from launch.trainer.loop import train_loop
from launch.trainer.preemption import StopSignals
from launch.trainer.recorder import Recorder
from launch.trainer.resize import at_step
from launch.trainer.resume import begin, is_progress, resume
from launch.trainer.saver import Saver
from launch.trainer.schedule import Position
from launch.trainer.setup import set_up
from launch.trainer.writing import only_writer
from launch.wire import deliveries, links, models
from launch.wire.greeting import greeting
from launch.wire.reports import Reporter
from rps_jax import transport

_COORDINATOR_SECONDS = 10.0
"""How long to wait for the coordinator's answer before the training."""


@dataclasses.dataclass(frozen=True, eq=False)
class UdpNetwork:
    """A network of `launch.trainer.network` of which this process is one worker.

    Attributes:
        mesh: Of this worker alone.
        network: That it has joined.
        every: Steps to an exchange.
    """

    mesh: rps.WorkerMesh
    network: transport.Network
    every: int

    @property
    def workers(self) -> range:
        """This one."""
        return range(self.network.worker, self.network.worker + 1)

    @property
    def waits(self) -> bool:
        """As every exchange does, for the others' datagrams."""
        return True

    def worker(self) -> jax.Array:
        """Returns this worker's index."""
        return jnp.int32(self.network.worker)

    def carrier(self, channel: Any) -> rps.Carrier:
        """Returns what carries blocks as datagrams."""
        del channel
        return _OnMesh(self.network)

    def catch_up(self, state: rps.TrainState, step: int) -> tuple[rps.TrainState, int]:
        """Goes on where the others are: this worker has their model now, and their schedule."""
        jax.block_until_ready(state.step)
        reached = self.network.next_exchange * self.every
        # Before its first exchange it knows of no other, and one exchange may be under way.
        if not reached or reached <= step < reached + 2 * self.every:
            return state, step

        def count() -> jax.Array:
            # A buffer of its own for each place: the step is given them all.
            return jax.device_put(jnp.full_like(state.step, reached), state.step.sharding)

        return at_step(state, count), reached


class _OnMesh(transport.Datagrams):
    """Carries the exchanges of the one worker of a mesh."""

    def sum(self, values: Any) -> Any:
        """Returns this worker's own, which is what all on its mesh have."""
        return jax.lax.psum(values, "workers")


def train_worker(
    config: TrainConfig,
    source: Source,
    output_dir: Path,
    network: transport.Network,
    coordinator: tuple[str, int] | None,
    key: bytes | None,
) -> None:
    """Trains one worker to the end of the run, from its own newest checkpoint if it has one.

    Args:
        config: A checked configuration, the same on every worker.
        source: The data, found and checked.
        output_dir: That of the run; this worker's own folder is below it.
        network: That the worker is to join.
        coordinator: Where it reports; None for nowhere.
        key: That of the run; None without authentication.

    Raises:
        UsageError: The data are damaged, or not those of the run, or the coordinator has another
            configuration.
        CheckpointError: A checkpoint cannot be written, or cannot be used.
        Diverged: The loss or the model is not finite.
        Stopped: By a signal; a checkpoint was saved.
    """
    folder = output_dir / "workers" / str(network.worker)
    begun = (folder / CONFIG_FILE).exists()
    own = dataclasses.replace(config, output_dir=folder, resume=begun)
    datagrams = UdpNetwork(rps.worker_mesh(1), network, make_rule(config).every)
    setup = set_up(own, source, folder, datagrams)
    checkpoints = Checkpoints(setup.directory.checkpoints, 3, is_progress)
    reporter = None
    if coordinator is not None:
        reporter = Reporter(coordinator, key, network.worker, greeting(setup))
    with only_writer(folder):
        if reporter is not None:
            answered = reporter.start(_COORDINATOR_SECONDS)
            _check_wanted(reporter)
            if not answered:
                _say(f"{reporter} has not answered; it is told when it does")
        start = resume(setup, checkpoints, _say) if begun else begin(setup)
        shown = reporter is None
        with (
            network,
            StopSignals() as signals,
            Progress(setup.schedule, setup.task.score, start.step, shown=shown) as progress,
        ):
            reports = _Reports(network, reporter, progress.show)
            recorder = Recorder(setup, start, reports.measure, reports.write, checkpoints.steps)
            saver = Saver(setup, checkpoints, recorder, speaks=False)
            hooks: list[Hook] = [progress, recorder, saver]
            trained = False
            try:
                at = setup.schedule.after(start.step)
                if at.last:  # Nobody may have taken the last line.
                    recorder.write_again(at, start.state)
                train_loop(setup, start.state, start.step, lambda: signals.first, hooks)
                reports.done()
                trained = True
            finally:
                if reporter is not None and (left := reporter.close(patient=trained)):
                    _say(f"{reporter} has not taken {left} of the reports")


class _Reports:
    """What becomes of this worker's metrics."""

    def __init__(
        self,
        network: transport.Network,
        reporter: Reporter | None,
        show: Callable[[dict[str, Any]], None],
    ) -> None:
        self._network, self._reporter, self._show = network, reporter, show
        self._bytes_reported = 0

    def measure(self, at: Position, state: rps.TrainState) -> dict[str, Any]:
        """Returns nothing: what the models are worth together, no worker can know."""
        del at, state
        return {}

    def write(self, line: dict[str, Any], state: rps.TrainState) -> None:
        """Reports a line, with the model that it is about, and what arrived since the last.

        Not of a model that is half old and half the others'.
        """
        self._show(line)
        if self._reporter is None:
            return
        _check_wanted(self._reporter)
        if not self._network.listens:
            sent = self._network.bytes_sent
            own = {"bytes_sent": sent - self._bytes_reported, "links": links.encode(state)}
            self._bytes_reported = sent
            self._reporter.tell("metrics", line | own, models.encode(state))
        self._report_deliveries()

    def done(self) -> None:
        """Reports that this worker is done."""
        if self._reporter is not None:
            self._report_deliveries()
            self._reporter.tell("done", {})

    def _report_deliveries(self) -> None:
        assert self._reporter is not None
        records = self._network.records[:]
        del self._network.records[: len(records)]
        for header, payload in deliveries.encode(records):
            self._reporter.tell("deliveries", header, payload)


def _check_wanted(reporter: Reporter) -> None:
    if reporter.refusal is not None:
        raise UsageError(reporter.refusal)


def _say(text: str) -> None:
    print(text, flush=True)
