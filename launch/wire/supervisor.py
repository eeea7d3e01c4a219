"""Runs the processes of a run over UDP: one that dies is missed, and started again if it may be."""

import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

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
from launch.distributed.supervisor import STOP_SECONDS, STOP_SIGNALS
from launch.trainer.preemption import StopSignals

_POLL_SECONDS = 0.05
_LAST_WORDS_SECONDS = 15.0
"""How long a worker may go on when the coordinator is done."""
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 1.0, 30.0
"""Before a process is started again, from the second time on; each is twice the one before."""
_STOP = signal.SIGTERM
"""What processes are given when the job is to stop: one that has saved ends with 128 and this."""


class Ending(NamedTuple):
    """How a job has ended.

    Attributes:
        exit_status: 0, or 128 and the signal if the job was asked to stop, and has.
        unsaved: Names of the workers that have saved no checkpoint when it was.
    """

    exit_status: int
    unsaved: tuple[str, ...] = ()


def supervise_members(
    commands: Sequence[Command], logs: Path, silence: float, show: Show, max_restarts: int
) -> Ending:
    """Runs a job whose processes do not need one another, until its coordinator is done.

    Args:
        commands: One for each process; the last is the coordinator.
        logs: Folder for what the processes say.
        silence: Seconds without a heartbeat after which a process is taken to hang, and is ended if
            it may be started again, or is the coordinator and no worker works any more.
        show: Given each line, with the name of its process before it.
        max_restarts: How often to start each process again when it fails.

    Raises:
        JobFailed: There is no result, a process has failed in a way that all would, or one did not
            end in time when it was asked to.
    """
    show = one_at_a_time(show)
    members: list[_Member] = []
    with StopSignals(STOP_SIGNALS, second_ends=False) as signals:
        try:
            for number, command in enumerate(commands):
                members.append(_Member(number, command, logs, show, max_restarts))
            *workers, coordinator = members
            while not signals.received:
                time.sleep(_POLL_SECONDS)
                for worker in workers:
                    worker.look_after(silence)
                alone = _none_works(workers, silence)
                coordinator.look_after(silence, alone=alone)
                if coordinator.is_done or (alone and coordinator.failure):
                    return _end(members, silence)
            return _stop(members, signals, silence)
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
        self._restarts, self._pause = restarts, 0.0
        self._next_life: float | None = None
        self._is_first = True
        self.process = Process(number, command, logs, show)
        self.failure: JobFailed | None = None

    @property
    def is_done(self) -> bool:
        """Whether it has come to the end of its work."""
        return self.process.status() == 0

    @property
    def has_ended(self) -> bool:
        """Whether it is done, or has failed and is not started again."""
        return self.is_done or self.failure is not None

    @property
    def has_saved(self) -> bool:
        """Whether it has saved a checkpoint: at the end of its work, or when it was stopped."""
        return self.process.status() in (0, 128 + _STOP)

    def hangs(self, silence: float) -> bool:
        """Returns whether it runs, and has been silent for longer than so many seconds."""
        silent = self.process.silent(time.monotonic(), silence)
        return silent > 0 and self.process.status() is None

    def works(self, silence: float) -> bool:
        """Returns whether it runs, and does not hang."""
        return self.process.status() is None and not self.hangs(silence)

    def look_after(self, silence: float, *, alone: bool = False) -> None:
        """Starts it again if it has failed, or hangs, and may be started again.

        Args:
            silence: Seconds without a heartbeat after which it is taken to hang.
            alone: Whether no other works any more: then it is started again once at the most, and
                has failed where it hangs and may not be.

        Raises:
            JobFailed: It would fail again, as would the others.
        """
        if self.has_ended:
            return
        if alone:
            self._restarts = min(self._restarts, 1)
        now = time.monotonic()
        if self._next_life is not None:
            if now >= self._next_life:
                self._next_life, self._is_first = None, False
                self.process = Process(self._number, self._command, self._logs, self._show)
            return
        status, silent = self.process.status(), self.process.silent(now, silence)
        if status is None:
            how = f"has sent no heartbeat for {silent:.0f} s"
            if silent and self._restarts:
                self._start_again(how, now)
            elif silent and alone:
                self.failure = self.process.failed(f"{how}, and was ended", 1)
            return
        how = how_it_ended(status)
        if status == DIVERGED or (status == USAGE and self._is_first):
            raise self.process.failed(how, status)
        if self._restarts:
            self._start_again(how, now)
        else:
            # A later life whose port or folder is taken, by one before that hangs elsewhere, has
            # the command line of the first.
            exit_status = 1 if status == USAGE else exit_status_of(status)
            self.failure = self.process.failed(how, exit_status)
            if not alone:
                self._show(f"{self.process.name} {how}; the others go on")

    def _start_again(self, how: str, now: float) -> None:
        self.process.kill()
        self._restarts -= 1
        pause, longer = self._pause, max(2 * self._pause, _FIRST_PAUSE_SECONDS)
        self._next_life, self._pause = now + pause, min(longer, _LONGEST_PAUSE_SECONDS)
        when = f" in {pause:.0f} s" if pause else ""
        self._show(f"{self.process.name} {how}, and is started again{when}")


def _none_works(workers: Sequence[_Member], silence: float) -> bool:
    """Returns whether workers have ended, and those that have not hang.

    Raises:
        JobFailed: All have failed.
    """
    failures = [worker.failure for worker in workers if worker.failure]
    if len(failures) == len(workers):
        raise failures[-1]
    left = [worker for worker in workers if not worker.has_ended]
    return len(left) < len(workers) and all(worker.hangs(silence) for worker in left)


def _end(members: Sequence[_Member], silence: float) -> Ending:
    """Waits a little for those that are about to end.

    Raises:
        JobFailed: There is no result.
    """
    *workers, coordinator = members

    until = time.monotonic() + _LAST_WORDS_SECONDS
    while time.monotonic() < until and any(worker.works(silence) for worker in workers):
        time.sleep(_POLL_SECONDS)
    if coordinator.failure is not None:
        raise coordinator.failure
    return Ending(0)


def _stop(members: Sequence[_Member], signals: StopSignals, silence: float) -> Ending:
    """Asks all that run to stop, and waits until they have ended, but for those that hang.

    Raises:
        JobFailed: One has not ended in time.
    """
    number, began = signals.first, time.monotonic()
    for member in members:
        if member.process.status() is None:
            member.process.signal(_STOP)
    while left := [member for member in members if member.works(silence)]:
        time.sleep(_POLL_SECONDS)
        if signals.insisted or time.monotonic() - began > STOP_SECONDS:
            seconds, name = time.monotonic() - began, signal_name(number)
            how = f"did not stop within {seconds:.0f} s of {name}, and was ended"
            raise left[0].process.failed(how, 128 + number)
    unsaved = tuple(member.process.name for member in members[:-1] if not member.has_saved)
    return Ending(128 + number, unsaved)
