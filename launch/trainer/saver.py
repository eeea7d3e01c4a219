"""Checkpoints while a run goes on, and when it is asked to stop."""

import shlex

import rps_jax as rps
from launch.trainer.checkpoints import Checkpoints
from launch.trainer.hook import Hook
from launch.trainer.preemption import Stopped
from launch.trainer.recorder import Recorder
from launch.trainer.resume import progress_of
from launch.trainer.schedule import Position
from launch.trainer.setup import Setup


class Saver(Hook):
    """A hook that saves checkpoints, and ends the run after a signal.

    Every process does so at the same step.
    """

    def __init__(
        self,
        setup: Setup,
        checkpoints: Checkpoints,
        recorder: Recorder,
        *,
        speaks: bool,
    ) -> None:
        """Has saved nothing yet.

        Args:
            setup: The training.
            checkpoints: The run's checkpoints.
            recorder: Whose window of steps is saved too.
            speaks: Whether to say where the run was stopped; one process of a job does.
        """
        self._setup, self._checkpoints, self._recorder = setup, checkpoints, recorder
        self._speaks = speaks

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
        window, wall_seconds = self._recorder.window, self._recorder.wall_seconds
        values = progress_of(self._setup, window.steps, wall_seconds, window.before)
        self._checkpoints.save(at.step, state, values)
        window.restart_clock()
