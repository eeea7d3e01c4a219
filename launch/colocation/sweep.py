"""Many simulations over the processor's cores, of which whatever is finished is kept.

Each result is a line of a file, added as soon as it is there. A sweep that is stopped and started
again goes on where it was; results of other settings, or of another version of the simulation, are
left alone.
"""

import contextlib
import dataclasses
import hashlib
import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from launch.channels.file_flag import digest_of_file
from launch.cli.command_line import CommandError
from launch.reports.bars import make_bar
from rps_jax.colocation import Settings, simulate
from rps_jax.colocation.compiled import source_digest

Values = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Job:
    """One thing to find out.

    Attributes:
        settings: Settings of its simulations.
        target_ms: For those who look for something: the mean completion time to be reached.
    """

    settings: Settings
    target_ms: float | None = None

    def key(self, measure: Callable[["Job"], Values]) -> str:
        """Returns what tells its result from all others."""
        parts = [measure.__qualname__, self.settings.as_json(), self.target_ms, source_digest()]
        if (trace := self.settings.learning_trace) is not None:
            parts.append(digest_of_file("learning_trace", trace))
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def summary(job: Job) -> Values:
    """Simulates the settings of a job and returns the summary, without its wall time."""
    found = simulate(job.settings).summary()
    del found["wall_seconds"]
    return found


def measure_all(
    measure: Callable[[Job], Values], jobs: Sequence[Job], path: Path, processes: int
) -> list[Values]:
    """Returns what is measured of every job, in their order.

    Args:
        measure: Measures one; a function of a module.
        jobs: What to measure.
        path: File of results, with a line of JSON each.
        processes: How many work at once.

    Raises:
        CommandError: One of the processes has died.
    """
    known = _read(path)
    keys = [job.key(measure) for job in jobs]
    missing = {key: job for key, job in zip(keys, jobs, strict=True) if key not in known}
    path.parent.mkdir(parents=True, exist_ok=True)
    bar = make_bar("simulating", len(jobs), initial=len(jobs) - len(missing), unit="point")
    with path.open("a") as file, bar:
        if missing:
            _compile()
        for key, values in _work(measure, missing, processes):
            known[key] = values
            # One write, so that no other line is ever cut or mixed up.
            file.write(json.dumps({"key": key, "values": values}) + "\n")
            file.flush()
            bar.update()
    return [known[key] for key in keys]


def default_processes() -> int:
    """Returns how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _work(
    measure: Callable[[Job], Values], jobs: dict[str, Job], processes: int
) -> Iterator[tuple[str, Values]]:
    """Yields keys and values as they come."""
    work = [(measure, key, job) for key, job in jobs.items()]
    if processes == 1 or len(work) <= 1:
        yield from map(_measure, work)
        return
    # New processes, not copies of this one: JAX and its threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(processes, len(work)), context)
    with _uninterrupted():  # What is started inherits it: Ctrl-C is this process's to deal with.
        measured = [pool.submit(_measure, one) for one in work]
    try:
        for one in as_completed(measured):
            yield one.result()
    except BrokenProcessPool as error:
        raise CommandError("one of the processes has died; what is finished is kept") from error
    finally:
        with _uninterrupted():
            for process in multiprocessing.active_children():
                process.terminate()
            pool.shutdown()


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ignores Ctrl-C while it is entered."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _measure(work: tuple[Callable[[Job], Values], str, Job]) -> tuple[str, Values]:
    measure, key, job = work
    return key, measure(job)


def _compile() -> None:
    """Compiles the core once, where each process would do it for itself."""
    simulate(Settings(duration=1e-3, warmup=0.0))


def _read(path: Path) -> dict[str, Values]:
    """Returns all whole lines; a process that was killed may have cut the last."""
    found = {}
    if path.exists():
        text = path.read_text(errors="replace")
        for line in text.splitlines():
            try:
                entry = json.loads(line)
                found[entry["key"]] = entry["values"]
            except (ValueError, KeyError, TypeError):
                continue
        if text and not text.endswith("\n"):
            with path.open("a") as file:
                file.write("\n")
    return found
