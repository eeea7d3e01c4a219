"""Lines of metrics of a whole run, from what each worker reports of its own."""

from collections.abc import Set
from typing import Any, NamedTuple

import numpy as np

from launch.json_objects import is_count, is_number
from launch.wire.links import decode
from rps_jax import LinkCounts

REPORTED = (
    *("step", "epoch", "train_loss", "delivered_fraction", "examples_per_second"),
    *("wall_seconds", "bytes_sent"),
)
"""What a worker measures by itself; the last since its report before."""


class Report(NamedTuple):
    """What a worker says at a step at which a line is due.

    Attributes:
        step: Steps that the run has taken.
        values: The worker's own metrics.
        links: What it has counted of its links in the epoch; None where it counts nothing.
        model: Bytes of its params and model state.
    """

    step: int
    values: dict[str, float]
    links: LinkCounts | None
    model: bytes

    @classmethod
    def of(cls, header: dict[str, Any], model: bytes, num_workers: int) -> "Report":
        """Returns the report in a message.

        Raises:
            KeyError: It lacks a metric.
            TypeError: A metric is no number.
            ValueError: Its counts are none of a run of so many workers.
        """
        values = {name: header[name] for name in REPORTED}
        if not all(map(is_number, values.values())) or not is_count(values["step"]):
            raise TypeError("metrics: expected numbers")
        counted = header["links"]
        links = None if counted is None else decode(counted, num_workers)
        return cls(values["step"], values, links, model)


class Lines:
    """The reports of which no line has been made yet, by step and worker."""

    def __init__(self, after: int, patience: float) -> None:
        """Has no reports.

        Args:
            after: Step of the last line that was written; reports of earlier ones are dropped.
            patience: Seconds without a report for which a line waits for a worker that is there;
                later lines do not wait for it until it reports again.
        """
        self._after, self._patience = after, patience
        self._reports: dict[int, dict[int, Report]] = {}
        self._began: dict[int, float] = {}
        self._newest: dict[int, int] = {}
        self._heard: dict[int, float] = {}
        self._given_up: set[int] = set()

    def add(self, worker: int, report: Report, now: float) -> None:
        """Adds a report that has come `now`, in seconds."""
        self._newest[worker], self._heard[worker] = report.step, now
        self._given_up.discard(worker)
        if report.step > self._after:
            self._reports.setdefault(report.step, {})[worker] = report
            self._began.setdefault(report.step, now)

    def due(self, present: Set[int], now: float) -> dict[int, Report] | None:
        """Returns the reports of the next line by worker; None while it has to wait.

        Args:
            present: The workers that are there: those of them that have not come so far are waited
                for, for a while.
            now: In seconds, of the clock of `add`.
        """
        if not self._reports:
            return None
        step = min(self._reports)
        began = self._began[step]
        for worker in present - self._given_up:
            if self._newest.get(worker, -1) < step:
                if now - max(began, self._heard.get(worker, began)) < self._patience:
                    return None
                self._given_up.add(worker)
        self._after = step
        del self._began[step]
        return self._reports.pop(step)


def merged(reports: dict[int, Report]) -> dict[str, Any]:
    """Returns what the reports of one step say together, as part of a line of metrics.

    Of `bytes_sent`, that is the mean since the line before; of `wall_seconds`, the longest time.
    """
    values = [report.values for report in reports.values()]
    means = {
        name: float(np.mean([of_worker[name] for of_worker in values]))
        for name in ("train_loss", "delivered_fraction", "bytes_sent")
    }
    speeds = [of_worker["examples_per_second"] for of_worker in values]
    first = values[0]
    return {
        "step": first["step"],
        "epoch": first["epoch"],
        **means,
        "examples_per_second": round(sum(speeds), 1),
        "wall_seconds": max(of_worker["wall_seconds"] for of_worker in values),
        "workers": len(values),
    }
