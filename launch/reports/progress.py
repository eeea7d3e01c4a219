"""What a person sees of a run: a live bar on a terminal, plain lines elsewhere."""

import sys
from typing import Any

import rps_jax as rps
from launch.reports.bars import REMAINING, make_bar
from launch.trainer.hook import Hook
from launch.trainer.schedule import Position, Schedule


class Progress(Hook):
    """A hook that shows where a run is.

    A context manager, so that the bar is put away whatever happens.
    """

    def __init__(self, schedule: Schedule, score: str, first_step: int, shown: bool = True) -> None:
        """Takes what the bar is about.

        Args:
            schedule: The run's schedule.
            score: The test metric to show.
            first_step: Steps that an earlier part of the run has taken.
            shown: Whether to show anything; one process of a job does.
        """
        self._schedule, self._score = schedule, score
        self._first_step, self._shown = first_step, shown
        self._measured = ""
        self._bar: Any = None

    def __enter__(self) -> "Progress":
        if self._shown and sys.stdout.isatty() and sys.stderr.isatty():
            # How long it takes can be estimated once everything is compiled.
            self._bar = self._make_bar("{desc}")
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def begin(self) -> None:
        """Starts the clock of the estimate."""
        if self._bar is not None:
            self._bar.close()
            self._bar = self._make_bar(REMAINING)

    def after_step(self, at: Position, state: rps.TrainState, signal_number: int) -> None:
        """Moves on."""
        if self._bar is not None:
            epochs = self._schedule.epochs
            epoch = min(at.step // self._schedule.steps_per_epoch + 1, epochs)
            self._bar.set_description_str(f"epoch {epoch}/{epochs}{self._measured}", refresh=False)
            self._bar.update(at.step - self._bar.n)

    def show(self, line: dict[str, Any]) -> None:
        """Shows a line of metrics."""
        # A worker that trains by itself does not know of the others.
        known = line.get("consensus_distance")
        distance = "" if known is None else f" distance {known:.2g}"
        # Before there has been an exchange, nothing is known of what arrives.
        delivered = f" delivered {100 * line['delivered_fraction']:.3g}%"
        if line.get("bytes_sent_per_worker") == 0:
            delivered = ""
        # Short: a terminal of 80 columns holds it, with room for the bar.
        self._measured = (
            f" loss {line['train_loss']:.4f}{distance}{delivered}"
            f" {_in_short(line['examples_per_second'])} ex/s"
        )
        if self._bar is not None or not self._shown:
            return
        score = line.get(self._score)
        test = "" if score is None else f" test {score:.4f}"
        print(
            f"epoch {line['epoch']:.4g}/{self._schedule.epochs}{self._measured}{test}", flush=True
        )

    def _make_bar(self, bar_format: str) -> Any:
        return make_bar(
            "compiling",
            self._schedule.total_steps,
            initial=self._first_step,
            bar_format=bar_format,
        )


def _in_short(rate: float) -> str:
    """Returns a number in at most five characters, however fast a small model trains."""
    return f"{rate:.0f}" if rate < 10_000 else f"{rate / 1000:.0f}k"
