"""The coordinator: takes the workers' reports, evaluates their mean model, and writes the results.

Nothing depends on it but the results: workers that cannot reach it train on.
"""

import contextlib
import functools
import math
import operator
import os
import queue
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

import rps_jax as rps
from data import Source
from launch.cli.command_line import CommandError, refuse
from launch.config import TrainConfig, stored_config
from launch.config_file import CONFIG_FILE, check_unchanged, deciding
from launch.reports.progress import Progress
from launch.rules import make_rule
from launch.trainer.metrics import of_distances, of_links, of_models
from launch.trainer.network import Simulated
from launch.trainer.preemption import Stopped, StopSignals
from launch.trainer.setup import Setup, set_up
from launch.trainer.summary import Summary, setting, summarise
from launch.trainer.writing import check_can_record, only_writer
from launch.wire.deliveries import LONGEST_BYTES, Deliveries, NotRecorded
from launch.wire.events import Event, Events
from launch.wire.greeting import refusal
from launch.wire.lines import Lines, Report, merged
from launch.wire.models import check_model, model_bytes, models_of
from launch.wire.reports import Reception

_PATIENCE_SECONDS = 10.0
"""How long a line of metrics waits for a worker that is there."""
_ALONE_SECONDS = 3.0
"""How long the end waits for others when a worker is done and no other is there."""
_MEETING_SECONDS = 15.0
"""After its start, how long the coordinator takes workers to be there that have not said so."""
_POLL_SECONDS = 0.2


class WorkersGone(CommandError):
    """The workers have gone before the end of the run."""


def coordinate(
    config: TrainConfig,
    source: Source,
    output_dir: Path,
    port: int,
    key: bytes | None,
    host: str = "",
) -> Summary:
    """Writes the results of a run, until its workers are done.

    Args:
        config: A checked configuration; workers with another are refused.
        source: The data, found and checked.
        output_dir: Where the results go; new, or that of a run that goes on.
        port: Of this host, where workers report.
        key: That of the run; None without authentication.
        host: Address of this host; empty for all that it has.

    Returns:
        The summary that was written.

    Raises:
        UsageError: The data are damaged, the port is taken, another process writes there, or the
            run that is there is another.
        WorkersGone: There is no result.
        Stopped: By a signal; what was reported is written.
    """
    if config.record is not None:
        check_can_record(config.record)
    # Evaluated here, all together; they are trained elsewhere.
    mesh = rps.worker_mesh(config.num_workers, config.num_workers)
    network = Simulated(mesh, make_rule(config), config.assignment)
    setup = set_up(config, source, output_dir, network)
    print(
        f"{setup.task.model_name} on {source.description}, {source.num_train:,} training examples\n"
        f"{setting(config)}",
        flush=True,
    )
    directory = setup.directory
    begun = (directory.path / CONFIG_FILE).exists()
    if begun:
        stored = deciding(stored_config(directory.path))
        check_unchanged(config, stored, f"the run in {directory.path}")
    longest = max(model_bytes(setup), LONGEST_BYTES)
    try:
        reception = Reception(
            port, key, config.num_workers, longest, lambda greeted: refusal(greeted, setup), host
        )
    except OSError as error:
        refuse("port", port, f"one that is free on this host ({os.strerror(error.errno or 0)})")
    with (
        contextlib.closing(reception),
        only_writer(directory.path),
        StopSignals() as signals,
    ):
        if not begun:
            directory.create(config)
        directory.rewind(math.inf, report=print)  # A line that was cut is not to be gone on with.
        lines = directory.read_metrics()
        step = lines[-1]["step"] if lines else 0
        with Progress(setup.schedule, setup.task.score, step) as progress:
            coordinator = _Coordinator(setup, lines, progress.show)
            coordinator.run(reception.events, lambda: signals.first)
        if signals.first:
            with contextlib.suppress(NotRecorded):
                coordinator.deliveries.save(setting(config))
            raise Stopped(signals.first, "in the coordinator", "the same command", said=False)
        if coordinator.reached < (last := setup.schedule.total_steps):
            raise WorkersGone(f"no worker has reported step {last:,}, which is the last")
        summary = summarise(setup, coordinator.wall_seconds)
        coordinator.deliveries.save(setting(config))
        return summary


class _Coordinator:
    """What is known of the run.

    Attributes:
        deliveries: What arrived in each exchange, where they are recorded.
        reached: The step of the last line.
        wall_seconds: How long the run has taken, by that line.
    """

    def __init__(
        self, setup: Setup, lines: list[dict[str, Any]], show: Callable[[dict[str, Any]], None]
    ) -> None:
        self._setup, self._show = setup, show
        last = lines[-1] if lines else {"step": 0}
        self.reached = last["step"]
        self._lines = Lines(self.reached, _PATIENCE_SECONDS)
        self._connections: Counter[int] = Counter()
        self._done: set[int] = set()
        # Seconds spent waiting for events: while a line is evaluated, nobody is late.
        self._waited = self._heard = 0.0
        self.wall_seconds = last.get("wall_seconds", 0.0)
        self._bytes_sent = last.get("bytes_sent_per_worker", 0.0)
        self.deliveries = Deliveries(setup.config.num_workers, setup.config.record)

    def run(self, events: Events, stopped: Callable[[], int]) -> None:
        """Takes events until all that are there are done, or a signal comes."""
        if self.reached == self._setup.schedule.total_steps:
            return  # An earlier coordinator has written all lines.
        while not (stopped() or self._all_done()):
            event = self._next(events)
            if event is not None:
                # What is no report of this run is none.
                with contextlib.suppress(KeyError, TypeError, ValueError):
                    self._take(event)
            elif self._is_over():
                break
            self._write_lines()
        self._done.update(range(self._setup.config.num_workers))  # Nobody is waited for any more.
        self._write_lines()

    def _next(self, events: Events) -> Event | None:
        began = time.monotonic()
        try:
            return events.get(timeout=_POLL_SECONDS)
        except queue.Empty:
            return None
        finally:
            self._waited += time.monotonic() - began

    def _all_done(self) -> bool:
        return len(self._done) == self._setup.config.num_workers

    def _is_over(self) -> bool:
        silent = self._waited - self._heard
        longest = 2 * max(_PATIENCE_SECONDS, self._setup.config.start_timeout)
        if self._done:
            return silent > (longest if self._present() - self._done else _ALONE_SECONDS)
        if not self._present() and silent > longest:
            raise WorkersGone(f"no worker has reported for {silent:.0f} s")
        return False

    def _present(self) -> set[int]:
        if self._waited < _MEETING_SECONDS:
            return set(range(self._setup.config.num_workers))
        return {worker for worker, count in self._connections.items() if count}

    def _take(self, event: Event) -> None:
        self._heard = self._waited
        if event.kind == "greeting":
            self._connections[event.worker] += 1
            self._done.discard(event.worker)
        elif event.kind == "gone":
            self._connections[event.worker] -= 1
        elif event.kind == "done":
            self._done.add(event.worker)
        elif event.kind == "deliveries":
            self.deliveries.add(event.worker, event.header, event.payload)
        elif event.kind == "metrics":
            check_model(self._setup, event.payload)
            n = self._setup.config.num_workers
            self._lines.add(event.worker, Report.of(event.header, event.payload, n), self._waited)

    def _write_lines(self) -> None:
        while reports := self._lines.due(self._present() - self._done, self._waited):
            line = merged(reports)
            self.wall_seconds = line["wall_seconds"] = max(self.wall_seconds, line["wall_seconds"])
            self._bytes_sent += line.pop("bytes_sent")
            line |= self._measure(line["step"], reports)
            self._setup.directory.append(line)
            self.reached = line["step"]
            self._show(line)

    def _measure(self, step: int, reports: dict[int, Report]) -> dict[str, Any]:
        setup, at = self._setup, self._setup.schedule.after(step)
        models = models_of(setup, [report.model for report in reports.values()])
        measured = of_distances(np.asarray(_distances(models[0])), at)
        measured["bytes_sent_per_worker"] = round(self._bytes_sent)
        counted = {worker: report.links for worker, report in reports.items() if report.links}
        if counted:
            measured |= of_links(counted, setup.config.num_workers, at)
        if at.epoch_ends:
            mean = _of_first(_mean(models))
            measured |= setup.evaluator.scores(mean, setup.train, setup.test)
        if at.scores_workers:
            rows = range(len(reports))
            each = (jax.tree.map(operator.itemgetter(row), models) for row in rows)
            measured |= of_models(setup, each)
        return measured


def _over_workers(function: Callable[..., Any]) -> Callable[[Any], Any]:
    """Returns a function of models, stacked by worker, whose results are too."""
    of_worker = functools.partial(function, axis_name="workers")
    return jax.jit(jax.vmap(of_worker, axis_name="workers"))


_distances = _over_workers(rps.distance_from_mean)
_mean = _over_workers(rps.mean_model)


def _of_first(stacked: Any) -> Any:
    return jax.tree.map(operator.itemgetter(0), stacked)
