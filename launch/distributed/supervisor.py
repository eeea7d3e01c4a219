"""Runs the processes of a job: all of them or none, and what they say in one place.

The first process that fails ends the others; Ctrl-C and SIGTERM are passed on, so that the job
saves a checkpoint; nothing stays behind when the supervisor dies, because each process holds a
lifeline to it (`launch.distributed.heartbeat`).
"""

import signal
import time
from collections.abc import Sequence
from pathlib import Path

from launch.cli.command_line import PEER_LOST
from launch.distributed.process import (
    Command,
    JobFailed,
    Process,
    Show,
    exit_status_of,
    how_it_ended,
    one_at_a_time,
    signal_name,
)
from launch.trainer.preemption import StopSignals

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_POLL_SECONDS = 0.05
_BLAME_SECONDS = 2.0
"""After a process was left alone, how long to look for the one that left it."""
STOP_SECONDS = 120.0
"""How long a job may take to save a checkpoint when it is asked to stop."""


def supervise(commands: Sequence[Command], logs: Path, silence: float, show: Show) -> int:
    """Runs a job to its end.

    Args:
        commands: One for each process.
        logs: Folder for what the processes say, made once one runs: each adds to its
            `process-I.log`.
        silence: Seconds without a heartbeat after which a process is taken to hang; until the
            first, it has a minute.
        show: Given each line, with the number of its process before it.

    Returns:
        The exit status: 0, or 128 and the signal if the job was asked to stop, and has.

    Raises:
        JobFailed: A process has failed or hangs; the others were ended.
    """
    processes: list[Process] = []
    show = one_at_a_time(show)
    with StopSignals(STOP_SIGNALS, second_ends=False) as signals:
        try:
            for number, command in enumerate(commands):
                processes.append(Process(number, command, logs, show))
            return _watch(processes, signals, silence)
        except JobFailed as error:
            error.may_restart = not signals.received
            raise
        finally:
            for process in processes:
                process.kill()


def _watch(processes: Sequence[Process], signals: StopSignals, silence: float) -> int:
    """Waits for the end of the job: of all its processes, or of the first that fails."""
    passed_on = left_alone = None
    while True:
        time.sleep(_POLL_SECONDS)
        now = time.monotonic()
        statuses = [process.status() for process in processes]

        if signals.received:
            number = signals.first
            asked = passed_on_as(number)
            if passed_on is None:
                passed_on = now
                for process in processes:
                    process.signal(asked)
            for process, status in zip(processes, statuses, strict=True):
                if status and status not in (-asked, 128 + asked) and not _is_left_alone(status):
                    raise process.failed(how_it_ended(status), exit_status_of(status))
                if status is None and now - passed_on > STOP_SECONDS:
                    how = f"did not stop within {STOP_SECONDS:.0f} s of {signal_name(number)}"
                    raise process.failed(how, 128 + number)
            if None not in statuses or signals.insisted:
                return 128 + number
        else:
            ended = [(status, i) for i, status in enumerate(statuses) if status]
            # Of those that have failed at once, one that was killed is rather the cause.
            for status, i in sorted(ended):
                process = processes[i]
                if not _is_left_alone(status):
                    raise process.failed(how_it_ended(status), exit_status_of(status))
                if left_alone is None:
                    left_alone = now, process, status
            if left_alone is not None and now - left_alone[0] > _BLAME_SECONDS:
                _, process, status = left_alone
                raise process.failed(how_it_ended(status), exit_status_of(status))
            if None not in statuses:
                if left_alone is None:
                    return 0
                continue

        for process, status in zip(processes, statuses, strict=True):
            silent = process.silent(now, silence)
            if status is None and silent:
                raise process.failed(
                    f"has sent no heartbeat for {silent:.0f} s (it is stopped, or its host "
                    "or the network is gone), and was ended",
                    1,
                )


def passed_on_as(number: int) -> int:
    """Returns the signal that asks a process of the job to stop as `number` asks the job."""
    return signal.SIGTERM if number == signal.SIGHUP else number


def _is_left_alone(status: int) -> bool:
    """Returns whether a process has ended so because another one had."""
    # JAX aborts a process that has lost the coordinator.
    return status in (PEER_LOST, -signal.SIGABRT, 128 + signal.SIGABRT)
