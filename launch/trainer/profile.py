"""A trace of a few training steps, to be looked at."""

from pathlib import Path

import jax

import rps_jax as rps
from launch.cli.command_line import CommandError
from launch.trainer.hook import Hook
from launch.trainer.schedule import Position

_WARM_UP, _TRACED = 5, 10
"""Steps before those of the trace, and most steps in it: a trace of a CPU grows by megabytes."""


class Profiler(Hook):
    """A hook that traces steps: the 6th to the 15th of this process, or the later half of fewer.

    It is to be closed: a trace that has begun is written then, whatever ended the run.
    """

    def __init__(self, folder: Path, steps: int) -> None:
        """Traces nothing yet.

        Args:
            folder: Where the trace goes.
            steps: How many will be taken.
        """
        self._folder = folder
        self._first = min(_WARM_UP, steps // 2)
        self._taken = 0
        self._traces = False

    def begin(self) -> None:
        """Starts the trace where there is no time to warm up."""
        if self._taken == self._first:
            self._start()

    def after_step(self, at: Position, state: rps.TrainState, signal_number: int) -> None:
        """Starts and ends the trace, between steps."""
        self._taken += 1
        if self._taken == self._first:
            jax.block_until_ready(state)
            self._start()
        elif self._taken == self._first + _TRACED:
            jax.block_until_ready(state)
            self.close()

    def _start(self) -> None:
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # Every call of Python would hide the steps.
        jax.profiler.start_trace(self._folder, create_perfetto_trace=True, profiler_options=options)
        self._traces = True

    def close(self) -> None:
        """Writes the trace, if one has begun and is not written yet.

        Raises:
            CommandError: It cannot be written.
        """
        if not self._traces:
            return
        self._traces = False
        try:
            jax.profiler.stop_trace()
        # What a disk that is full or gone raises depends on which library has met it.
        except (OSError, RuntimeError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise CommandError(
                f"--profile {self._folder}: the trace cannot be written ({reason})"
            ) from error
