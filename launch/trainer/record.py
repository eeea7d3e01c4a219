"""The drops of a run, written down as a trace, and a picture of them beside it."""

import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

import rps_jax as rps
from launch.trainer.hook import Hook


def picture_of(trace: Path) -> Path:
    """Returns the path of the picture of a trace: `drops.npz.png` beside `drops.npz`."""
    return trace.with_name(trace.name + ".png")


class DropRecorder(Hook):
    """A hook that collects what arrives, in a file beside the trace that it becomes at the end.

    It is a context: the trace of the steps that were taken is written on leaving it, whatever ended
    them.
    """

    def __init__(self, path: Path, packets: int, title: str, description: dict[str, Any]) -> None:
        """Has recorded nothing yet.

        Args:
            path: Of the trace.
            packets: How many packets a message is cut into.
            title: Above the picture.
            description: Kept in the file, JSON values.
        """
        self._path, self._packets = path, packets
        self._title, self._description = title, description
        self._shifts: list[int] = []
        self._shape: tuple[int, ...] = ()

    def __enter__(self) -> "DropRecorder":
        """Makes the file of what arrives."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = tempfile.TemporaryFile(dir=self._path.parent)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Writes the trace, if there were exchanges."""
        with self._file:
            if not self._shifts:
                return
            self._file.flush()
            shape = (len(self._shifts), *self._shape)
            arrived = np.memmap(self._file, np.uint8, mode="r", shape=shape)
            shifts = np.array(self._shifts, np.int32)
            trace = rps.Trace(arrived, self._packets, shifts=shifts)
            trace.save(self._path, self._description)
            from launch.reports.drops import draw_drops  # Late: Matplotlib takes half a second.

            draw_drops(trace, self._title, picture_of(self._path))

    def on_metrics(self, metrics: rps.StepMetrics) -> None:
        """Adds what arrived in a step, if it had an exchange."""
        if metrics.arrivals is None:
            return
        arrived = np.asarray(metrics.arrivals.arrived)
        if not arrived.any():  # Where there is an exchange, a worker's own messages arrive.
            return
        self._shape = arrived.shape
        self._shifts.append(int(metrics.arrivals.shift))
        self._file.write(arrived.tobytes())
