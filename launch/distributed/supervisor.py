"""Runs the processes of a job: all of them or none, and what they say in one place.

The first process that fails ends the others; Ctrl-C and SIGTERM are passed on, so that the job
saves a checkpoint; nothing stays behind when the supervisor dies, because each process holds a
lifeline to it (`launch.distributed.heartbeat`).
"""

import contextlib
import os
import re
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from launch.cli.command_line import PEER_LOST, CommandError
from launch.distributed.heartbeat import BEAT, ENVIRONMENT
from launch.trainer.preemption import StopSignals

_LAST_LINES = 8
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_POLL_SECONDS = 0.05
_BLAME_SECONDS = 2.0
"""After a process was left alone, how long to look for the one that left it."""
_START_SECONDS = 60.0
"""How long a process may take to its first heartbeat: Python starts slowly on a busy host."""
_STOP_SECONDS = 120.0
"""How long a job may take to save a checkpoint when it is asked to stop."""
_NOISE = re.compile(r"(\[Gloo\] Rank .*|\*\*\* Check failure stack trace.*|\s+@ +0x.*)?")
"""Lines that are kept in the log, and not shown: greetings and stack traces of compiled code."""

_SILENT = re.compile(r"unhealthy \(stopped sending heartbeats\):\s*(\d+)")
"""What JAX says in a process that it ends for the sake of another."""

Show = Callable[[str], None]


class JobFailed(CommandError):
    """A process of the job has failed; the message ends with the last lines that it said.

    Attributes:
        exit_status: That of the process, or 128 and the signal that killed it.
        may_restart: Whether the job is still wanted: nobody has asked it to stop.
    """

    def __init__(self, message: str, exit_status: int) -> None:
        """Takes a message of one line or many."""
        super().__init__(message)
        self.exit_status = exit_status
        self.may_restart = True

    def report(self) -> str:
        """Returns the message with its lines."""
        return f"error: {self}"


class Command(NamedTuple):
    """How one process of a job is started.

    Attributes:
        argv: What to run on this host; it may start the process on another.
        environment: Variables of what is run, beside those of this process.
        place: Name of the other host; empty for this one.
    """

    argv: Sequence[str]
    environment: Mapping[str, str]
    place: str = ""


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
    processes: list[_Process] = []
    speaking = threading.Lock()

    def show_whole(line: str) -> None:
        with speaking:  # Each process is read by a thread of its own.
            show(line)

    with StopSignals(_STOP_SIGNALS, second_ends=False) as signals:
        try:
            for number, command in enumerate(commands):
                log = logs / f"process-{number}.log"
                processes.append(_Process(number, command, log, show_whole))
            return _watch(processes, signals, silence)
        except JobFailed as error:
            error.may_restart = not signals.received
            raise
        finally:
            for process in processes:
                process.kill()


class _Process:
    """One process of the job, and the thread that reads what it says."""

    def __init__(self, number: int, command: Command, log: Path, show: Show) -> None:
        """Starts the process."""
        self.name = f"process {number}" + (f" on {command.place}" if command.place else "")
        self.began = time.monotonic()
        self.last_beat: float | None = None
        self.last_lines: deque[str] = deque(maxlen=_LAST_LINES)
        try:
            self._popen = subprocess.Popen(
                command.argv,
                env={**os.environ, **command.environment, ENVIRONMENT: "1"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C comes to the supervisor alone.
            )
        except OSError as error:
            reason = f"{command.argv[0]}: {error.strerror or error}"
            raise JobFailed(f"{self.name} cannot be started ({reason})", 1) from error
        log.parent.mkdir(parents=True, exist_ok=True)
        self._reader = threading.Thread(target=self._read, args=(number, log, show), daemon=True)
        self._reader.start()

    def _read(self, number: int, log: Path, show: Show) -> None:
        assert self._popen.stdout is not None
        with log.open("ab") as kept, self._popen.stdout as said:
            rest = b""
            while part := os.read(said.fileno(), 1 << 16):
                if BEAT in part:
                    self.last_beat = time.monotonic()
                *lines, rest = (rest + part.replace(BEAT, b"")).split(b"\n")
                for line in lines:
                    self._take(number, line, kept, show)
            if rest:
                self._take(number, rest, kept, show)

    def _take(self, number: int, raw: bytes, kept: BinaryIO, show: Show) -> None:
        with contextlib.suppress(OSError):  # A full disk must not stop the reading.
            kept.write(raw + b"\n")
            kept.flush()
        line = raw.decode(errors="replace").rstrip()
        if not _NOISE.fullmatch(line):
            self.last_lines.append(line)
            with contextlib.suppress(BrokenPipeError):  # Nobody reads it any more; the log goes on.
                show(f"[{number}] {line}")

    def status(self) -> int | None:
        """Returns its exit status, negative if a signal killed it; None while it runs."""
        return self._popen.poll()

    def silent(self, now: float) -> float:
        """Returns the seconds since its last heartbeat, or its start."""
        return now - (self.last_beat or self.began)

    def signal(self, number: int) -> None:
        """Has the process, wherever it is, give a signal to itself."""
        assert self._popen.stdin is not None
        with contextlib.suppress(OSError):
            self._popen.stdin.write(f"{number}\n".encode())
            self._popen.stdin.flush()

    def kill(self) -> None:
        """Ends the process if it runs, with all that it has started here."""
        assert self._popen.stdin is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._popen.pid, signal.SIGKILL)
        with contextlib.suppress(OSError):
            self._popen.stdin.close()  # What it has started elsewhere ends with this.
        self._popen.wait()
        self._reader.join(timeout=2.0)

    def failed(self, how: str, status: int) -> JobFailed:
        """Returns the failure of the job because of this process."""
        self.kill()
        lost = _SILENT.search("\n".join(self.last_lines))
        if lost:
            how += f", because process {lost[1]} had gone silent,"
        after = f"after {time.monotonic() - self.began:.0f} s"
        said = "".join(f"\n  {line}" for line in self.last_lines)
        return JobFailed(
            f"{self.name} {how} {after}"
            + (f"; the last that it said:{said}" if said else "; it had said nothing"),
            status,
        )


def _watch(processes: Sequence[_Process], signals: StopSignals, silence: float) -> int:
    """Waits for the end of the job: of all its processes, or of the first that fails."""
    passed_on = left_alone = None
    while True:
        time.sleep(_POLL_SECONDS)
        now = time.monotonic()
        statuses = [process.status() for process in processes]

        if signals.received:
            number = signals.first
            if passed_on is None:
                passed_on = now
                for process in processes:
                    # SIGHUP would end them without a checkpoint.
                    process.signal(signal.SIGTERM if number == signal.SIGHUP else number)
            for process, status in zip(processes, statuses, strict=True):
                if status and status not in (-number, 128 + number) and not _is_left_alone(status):
                    raise process.failed(_how_it_ended(status), _exit_status(status))
                if status is None and now - passed_on > _STOP_SECONDS:
                    how = f"did not stop within {_STOP_SECONDS:.0f} s of {_name(number)}"
                    raise process.failed(how, 128 + number)
            if None not in statuses or len(signals.received) > 1:
                return 128 + number
        else:
            ended = [(status, i) for i, status in enumerate(statuses) if status]
            # Of those that have failed at once, one that was killed is rather the cause.
            for status, i in sorted(ended):
                process = processes[i]
                if not _is_left_alone(status):
                    raise process.failed(_how_it_ended(status), _exit_status(status))
                if left_alone is None:
                    left_alone = now, process, status
            if left_alone is not None and now - left_alone[0] > _BLAME_SECONDS:
                _, process, status = left_alone
                raise process.failed(_how_it_ended(status), _exit_status(status))
            if None not in statuses:
                if left_alone is None:
                    return 0
                continue

        for process, status in zip(processes, statuses, strict=True):
            silent = process.silent(now)
            allowed = silence if process.last_beat else max(silence, _START_SECONDS)
            if status is None and silent > allowed:
                raise process.failed(
                    f"has sent no heartbeat for {silent:.0f} s (it is stopped, or its host "
                    "or the network is gone), and was ended",
                    1,
                )


def _is_left_alone(status: int) -> bool:
    """Returns whether a process has ended so because another one had."""
    # JAX aborts a process that has lost the coordinator.
    return status in (PEER_LOST, -signal.SIGABRT, 128 + signal.SIGABRT)


def _how_it_ended(status: int) -> str:
    return f"was killed by {_name(-status)}" if status < 0 else f"ended with status {status}"


def _exit_status(status: int) -> int:
    return 128 - status if status < 0 else status


def _name(number: int) -> str:
    return signal.Signals(number).name
