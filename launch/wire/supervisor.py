"""Runs the processes of a run over UDP: one that dies is missed, and started again if it may be."""

import time
from collections.abc import Sequence
from pathlib import Path

from launch.cli.command_line import DIVERGED, USAGE
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
from launch.distributed.supervisor import STOP_SECONDS, STOP_SIGNALS, passed_on_as
from launch.trainer.preemption import StopSignals

_POLL_SECONDS = 0.05
_LAST_WORDS_SECONDS = 15.0
"""How long a worker may go on when the coordinator is done."""
_WOULD_END_AGAIN = (USAGE, DIVERGED)


def supervise_members(
    commands: Sequence[Command], logs: Path, silence: float, show: Show, max_restarts: int
) -> int:
    """Runs a job whose processes do not need one another, until its coordinator is done.

    Args:
        commands: One for each process; the last is the coordinator.
        logs: Folder for what the processes say.
        silence: Seconds without a heartbeat after which a process is taken to hang, and is ended if
            it may be started again.
        show: Given each line, with the name of its process before it.
        max_restarts: How often to start each process again when it fails.

    Returns:
        The exit status: 0, or 128 and the signal if the job was asked to stop, and has.

    Raises:
        JobFailed: There is no result, a process has failed in a way that all would, or one did not
            stop when it was asked to.
    """
    show = one_at_a_time(show)
    members: list[_Member] = []
    with StopSignals(STOP_SIGNALS, second_ends=False) as signals:
        try:
            for number, command in enumerate(commands):
                members.append(_Member(number, command, logs, show, max_restarts))
            while not signals.received:
                time.sleep(_POLL_SECONDS)
                for member in members:
                    member.look_after(silence)
                if _is_over(members):
                    return _end(members)
            return _stop(members, signals)
        finally:
            for member in members:
                member.process.kill()


class _Member:
    """One of the processes, and what is known of its lives.

    Attributes:
        process: The present one, or the last.
        failure: Why there will be no other; None while there may be.
    """

    def __init__(
        self, number: int, command: Command, logs: Path, show: Show, restarts: int
    ) -> None:
        """Starts it."""
        self._number, self._command, self._logs, self._show = number, command, logs, show
        self._restarts = restarts
        self.process = Process(number, command, logs, show)
        self.failure: JobFailed | None = None

    @property
    def is_done(self) -> bool:
        """Whether it has come to the end of its work."""
        return self.process.status() == 0

    def look_after(self, silence: float) -> None:
        """Starts it again if it has failed, or hangs, and may be started again.

        Raises:
            JobFailed: It would fail again, as would the others.
        """
        status = self.process.status()
        silent = self.process.silent(time.monotonic(), silence)
        if self.failure is not None or status == 0:
            return
        if status is None:
            if silent and self._restarts:
                self._start_again(f"has sent no heartbeat for {silent:.0f} s")
            return
        how = how_it_ended(status)
        if status in _WOULD_END_AGAIN:
            raise self.process.failed(how, exit_status_of(status))
        if self._restarts:
            self._start_again(how)
        else:
            self.failure = self.process.failed(how, exit_status_of(status))
            self._show(f"{self.process.name} {how}; the others go on")

    def _start_again(self, how: str) -> None:
        self.process.kill()
        self._restarts -= 1
        self._show(f"{self.process.name} {how}, and is started again")
        self.process = Process(self._number, self._command, self._logs, self._show)


def _is_over(members: Sequence[_Member]) -> bool:
    """Returns whether there is a result, or none will be.

    Raises:
        JobFailed: No worker is left.
    """
    *workers, coordinator = members
    failures = [member.failure for member in workers if member.failure]
    if len(failures) == len(workers):
        raise failures[-1]
    ended = all(member.is_done or member.failure for member in workers)
    return coordinator.is_done or (ended and coordinator.failure is not None)


def _end(members: Sequence[_Member]) -> int:
    """Waits a little for those that are about to end.

    Raises:
        JobFailed: There is no result.
    """
    *workers, coordinator = members
    until = time.monotonic() + _LAST_WORDS_SECONDS
    while time.monotonic() < until and any(each.process.status() is None for each in workers):
        time.sleep(_POLL_SECONDS)
    if coordinator.failure is not None:
        raise coordinator.failure
    return 0


def _stop(members: Sequence[_Member], signals: StopSignals) -> int:
    """Passes a signal on, and waits until all have saved a checkpoint.

    Raises:
        JobFailed: One has not.
    """
    number, began = signals.first, time.monotonic()
    for member in members:
        member.process.signal(passed_on_as(number))
    while left := [member.process for member in members if member.process.status() is None]:
        time.sleep(_POLL_SECONDS)
        if signals.insisted or time.monotonic() - began > STOP_SECONDS:
            seconds, name = time.monotonic() - began, signal_name(number)
            how = f"did not stop within {seconds:.0f} s of {name}, and was ended"
            raise left[0].failed(how, 128 + number)
    return 128 + number
