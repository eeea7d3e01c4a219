"""Has the lines of metrics of a run written when they are due."""

import math
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

import rps_jax as rps
from launch.cli.command_line import DIVERGED, CommandError
from launch.rules import make_rule
from launch.trainer.hook import Hook
from launch.trainer.resume import Start
from launch.trainer.run_directory import EPOCH_DIGITS
from launch.trainer.schedule import Position
from launch.trainer.setup import Setup

_IN_WORDS = {
    "consensus_distance": "the consensus distance",
    "mean_model_train_loss": "the mean model's loss",
    "test_loss": "the mean model's test loss",
}


class Diverged(CommandError):
    """The training has left the finite numbers; the message says when, and what is kept."""

    exit_status = DIVERGED


class Window:
    """What happened in the steps since the last line of metrics.

    Attributes:
        steps: `[loss, delivered fraction]` of each, None for the fraction of a step without an
            exchange, and, where delays are simulated, the seconds of its exchange; a checkpoint
            holds them too.
        before: The averages of the last line; its fraction of what was delivered holds until there
            is an exchange again.
    """

    def __init__(
        self,
        steps: list[list[float | None]],
        before: Mapping[str, float] = MappingProxyType({}),
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Goes on from the steps of an earlier part of the run.

        Args:
            steps: Those of the window that were taken already.
            before: The averages of the line before; none before the first.
            clock: Returns seconds.
        """
        self.steps, self.before, self._clock = steps, before, clock
        self.restart_clock()

    def restart_clock(self) -> None:
        """Leaves out of the throughput whatever happened before now."""
        self._timed_from, self._began = len(self.steps), self._clock()

    def add(self, loss: float, delivered: float | None, *exchange_seconds: float) -> None:
        """Adds a step."""
        self.steps.append([loss, delivered, *exchange_seconds])

    def averages(self, examples_per_step: int) -> dict[str, float]:
        """Returns the means over the steps, and the throughput."""
        examples = (len(self.steps) - self._timed_from) * examples_per_step
        names = ("train_loss", "delivered_fraction", "exchange_seconds")
        columns = [
            [value for value in column if value is not None]
            for column in zip(*self.steps, strict=True)
        ]
        means = {
            name: float(np.mean(column))
            for name, column in zip(names, columns, strict=False)
            if column
        }
        means.setdefault("delivered_fraction", self.before.get("delivered_fraction", 1.0))
        return {
            **means,
            "examples_per_second": round(examples / (self._clock() - self._began), 1),
        }


class Recorder(Hook):
    """A hook that measures, and writes lines of metrics.

    Attributes:
        window: The steps since the last line.
    """

    def __init__(
        self,
        setup: Setup,
        start: Start,
        measure: Callable[[Position, rps.TrainState], dict[str, Any]],
        write: Callable[[dict[str, Any], rps.TrainState], None],
        saved: Callable[[], list[int]],
    ) -> None:
        """Has measured nothing yet.

        Args:
            setup: The training.
            start: Where it begins or goes on.
            measure: Returns what the workers' models are worth, by the names of the metrics.
            write: Given each line, and the models that it is about.
            saved: Returns the steps of the checkpoints that there are.
        """
        self._setup, self._measure, self._write, self._saved = setup, measure, write, saved
        self._step, self._every = start.step, make_rule(setup.config).every
        self._began = time.perf_counter() - start.wall_seconds
        self.window = Window(start.window, start.averages)

    @property
    def wall_seconds(self) -> float:
        """How long the run has taken, its earlier parts included."""
        return time.perf_counter() - self._began

    def begin(self) -> None:
        """Starts the clock of the throughput."""
        self.window.restart_clock()

    def on_metrics(self, metrics: rps.StepMetrics) -> None:
        """Adds a step to the window."""
        self._step += 1
        loss, delivered = float(metrics.loss), float(np.mean(metrics.delivered))
        exchanges = self._setup.exchange_bytes and self._step % self._every == 0
        seconds = metrics.exchange_seconds
        waited = () if seconds is None else (float(seconds),)
        self.window.add(loss, delivered if exchanges else None, *waited)
        self._check_finite("the training loss", loss)

    def after_step(self, at: Position, state: rps.TrainState, signal_number: int) -> None:
        """Writes a line where one is due."""
        del signal_number
        if not at.logs:
            return
        setup = self._setup
        averages = self.window.averages(setup.network.mesh.num_workers * setup.config.batch_size)
        measured = self._measure(at, state)
        for name in measured.keys() & _IN_WORDS.keys():
            self._check_finite(_IN_WORDS[name], measured[name])
        self._write(self._line(at, {**averages, **measured}), state)
        # Neither measuring nor writing counts as training.
        self.window = Window([], averages)

    def write_again(self, at: Position, state: rps.TrainState) -> None:
        """Writes the line that was written last, without what was measured."""
        self._write(self._line(at, self.window.before), state)

    def _line(self, at: Position, values: Mapping[str, Any]) -> dict[str, Any]:
        place = {"step": at.step, "epoch": round(at.epoch, EPOCH_DIGITS)}
        return {**place, **values, "wall_seconds": round(self.wall_seconds, 2)}

    def check_models(self, state: rps.TrainState) -> None:
        """Raises `Diverged` for models that are not finite."""
        farthest = float(self._setup.evaluator.distances(state).max())
        self._check_finite("the consensus distance", farthest)

    def _check_finite(self, what: str, value: float) -> None:
        if not math.isfinite(value):
            total, saved = self._setup.schedule.total_steps, self._saved()
            kept = f"the checkpoint of step {saved[-1]:,} is kept" if saved else "no checkpoint yet"
            raise Diverged(
                f"{what} is {value} at step {self._step:,} of {total:,}; {kept}; a "
                "smaller --learning-rate or a --clip-norm may help"
            )
