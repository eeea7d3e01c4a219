"""The lines of metrics of a run."""

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import rps_jax as rps
from launch.cli.command_line import DIVERGED, CommandError
from launch.trainer.resume import Start
from launch.trainer.run_directory import EPOCH_DIGITS
from launch.trainer.schedule import Position
from launch.trainer.setup import Setup


class Diverged(CommandError):
    """The training has left the finite numbers; the message says when, and what is kept."""

    exit_status = DIVERGED


class Window:
    """What happened in the steps since the last line of metrics.

    Attributes:
        steps: `[loss, delivered fraction]` of each; a checkpoint holds them too.
    """

    def __init__(
        self, steps: list[list[float]], clock: Callable[[], float] = time.perf_counter
    ) -> None:
        """Goes on from the steps of an earlier part of the run.

        Args:
            steps: Those of the window that were taken already.
            clock: Returns seconds.
        """
        self.steps, self._clock = steps, clock
        self.restart_clock()

    def restart_clock(self) -> None:
        """Leaves out of the throughput whatever happened before now."""
        self._timed_from, self._began = len(self.steps), self._clock()

    def add(self, loss: float, delivered: float) -> None:
        """Adds a step."""
        self.steps.append([loss, delivered])

    def averages(self, examples_per_step: int) -> dict[str, float]:
        """Returns the means over the steps, and the throughput."""
        examples = (len(self.steps) - self._timed_from) * examples_per_step
        loss, delivered = np.mean(self.steps, axis=0)
        return {
            "train_loss": float(loss),
            "delivered_fraction": float(delivered),
            "examples_per_second": round(examples / (self._clock() - self._began), 1),
        }


class Recorder:
    """A hook that measures, and writes lines of metrics.

    Attributes:
        window: The steps since the last line.
    """

    def __init__(
        self,
        setup: Setup,
        start: Start,
        show: Callable[[dict[str, Any]], None],
        saved: Callable[[], list[int]],
    ) -> None:
        """Has measured nothing yet.

        Args:
            setup: The training.
            start: Where it begins or goes on.
            show: Shown each line.
            saved: Returns the steps of the checkpoints that there are.
        """
        self._setup, self._show, self._saved = setup, show, saved
        self._step = start.step
        self.window = Window(start.window)

    def begin(self) -> None:
        """Starts the clock."""
        self.window.restart_clock()

    def on_metrics(self, metrics: rps.StepMetrics) -> None:
        """Adds a step to the window."""
        self._step += 1
        self.window.add(float(metrics.loss), float(np.mean(metrics.delivered)))
        self._check_finite("the training loss", self.window.steps[-1][0])

    def after_step(self, at: Position, state: rps.TrainState, signal_number: int) -> None:
        """Writes a line where one is due."""
        del signal_number
        if not at.logs:
            return
        config = self._setup.config
        averages = self.window.averages(config.num_workers * config.batch_size)
        measured = {"consensus_distance": self.check_models(state)}
        if at.epoch_ends:
            measured |= self._setup.evaluator.scores(state, self._setup.train, self._setup.test)
            self._check_finite("the mean model's loss", measured["mean_model_train_loss"])
            self._check_finite("the mean model's test loss", measured["test_loss"])
        line = {"step": at.step, "epoch": round(at.epoch, EPOCH_DIGITS), **averages, **measured}
        if self._setup.first_process:
            self._setup.directory.append(line)
        self._show(line)
        # Neither measuring nor writing counts as training.
        self.window = Window([])

    def check_models(self, state: rps.TrainState) -> float:
        """Returns the consensus distance of models that are finite.

        Raises:
            Diverged: They are not.
        """
        distance = self._setup.evaluator.consensus_distance(state)
        self._check_finite("the consensus distance", distance)
        return distance

    def _check_finite(self, what: str, value: float) -> None:
        if not math.isfinite(value):
            total, saved = self._setup.schedule.total_steps, self._saved()
            kept = f"the checkpoint of step {saved[-1]:,} is kept" if saved else "no checkpoint yet"
            raise Diverged(
                f"{what} is {value} at step {self._step:,} of {total:,}; {kept}; a "
                "smaller --learning-rate or a --clip-norm may help"
            )
