"""Checkpoints while a run goes on, and when it is asked to stop."""

import shlex
import time

import rps_jax as rps
from launch.trainer.checkpoints import Checkpoints
from launch.trainer.metrics import Recorder
from launch.trainer.preemption import Stopped
from launch.trainer.resume import Start, progress_of
from launch.trainer.schedule import Position
from launch.trainer.setup import Setup


class Saver:
    """A hook that saves checkpoints, and ends the run after a signal.

    Every process does so at the same step.
    """

    def __init__(
        self,
        setup: Setup,
        start: Start,
        checkpoints: Checkpoints,
        recorder: Recorder,
        *,
        speaks: bool,
    ) -> None:
        """Starts the clock of the run.

        Args:
            setup: The training.
            start: Where it begins or goes on.
            checkpoints: The run's checkpoints.
            recorder: Whose window of steps is saved too.
            speaks: Whether to say where the run was stopped; one process of a job does.
        """
        self._setup, self._checkpoints, self._recorder = setup, checkpoints, recorder
        self._speaks = speaks
        self._began = time.perf_counter() - start.wall_seconds

    @property
    def wall_seconds(self) -> float:
        """How long the run has taken, its earlier parts included."""
        return time.perf_counter() - self._began

    def begin(self) -> None:
        """Does nothing."""

    def on_metrics(self, metrics: rps.StepMetrics) -> None:
        """Does nothing."""

    def after_step(self, at: Position, state: rps.TrainState, signal_number: int) -> None:
        """Saves where a checkpoint is due, or the run is to stop."""
        if signal_number and not at.last:
            self._recorder.check_models(state)  # A model that is not finite is no checkpoint.
            self._save(at, state)
            folder = shlex.quote(str(self._setup.directory.path))
            raise Stopped(
                signal_number,
                f"at step {at.step:,} of {self._setup.schedule.total_steps:,}, with a checkpoint",
                f"python -m launch.train --resume --output-dir {folder}",
                said=self._speaks,
            )
        if at.saves:
            self._save(at, state)

    def _save(self, at: Position, state: rps.TrainState) -> None:
        values = progress_of(self._setup, self._recorder.window.steps, self.wall_seconds)
        self._checkpoints.save(at.step, state, values)
        self._recorder.window.restart_clock()
