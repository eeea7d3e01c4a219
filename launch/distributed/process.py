"""One process of a job: how it is started, what it says, whether it lives, and how it ended."""

import contextlib
import os
import re
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from io import FileIO
from pathlib import Path
from typing import NamedTuple

from launch.cli.command_line import CommandError
from launch.distributed.heartbeat import BEAT, ENVIRONMENT, secret_order

_LAST_LINES = 8
_START_SECONDS = 60.0
"""How long a process may take to its first heartbeat: Python starts slowly on a busy host."""
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
        name: For people; empty for "process" and its number.
        secret: What it shall know and nobody else; see `heartbeat.wait_for_secret`.
    """

    argv: Sequence[str]
    environment: Mapping[str, str]
    place: str = ""
    name: str = ""
    secret: bytes = b""


class Process:
    """One process of the job, and the thread that reads what it says.

    Attributes:
        name: For people.
        last_beat: When its last heartbeat came; None before the first.
        last_lines: The last that it said.
    """

    def __init__(self, number: int, command: Command, logs: Path, show: Show) -> None:
        """Starts the process.

        Args:
            number: Its number in the job.
            command: How it is started.
            logs: Folder for what it says, which is added to `process-NUMBER.log`.
            show: Given each line, with its number before it.

        Raises:
            JobFailed: It cannot be started.
        """
        name = command.name or f"process {number}"
        self.name = name + (f" on {command.place}" if command.place else "")
        self._label = command.name or str(number)
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
        if command.secret:
            self._order(secret_order(command.secret))
        logs.mkdir(parents=True, exist_ok=True)
        log = logs / f"{name.replace(' ', '-')}.log"
        self._reader = threading.Thread(target=self._read, args=(log, show), daemon=True)
        self._reader.start()

    def _read(self, log: Path, show: Show) -> None:
        assert self._popen.stdout is not None
        # Without a buffer, that would be written when the file is closed, and may not fit.
        with log.open("ab", buffering=0) as kept, self._popen.stdout as said:
            rest = b""
            while part := os.read(said.fileno(), 1 << 16):
                if BEAT in part:
                    self.last_beat = time.monotonic()
                *lines, rest = (rest + part.replace(BEAT, b"")).split(b"\n")
                for line in lines:
                    self._take(line, kept, show)
            if rest:
                self._take(rest, kept, show)

    def _take(self, raw: bytes, kept: FileIO, show: Show) -> None:
        with contextlib.suppress(OSError):  # A full disk must not stop the reading.
            kept.write(raw + b"\n")
        line = raw.decode(errors="replace").rstrip()
        if not _NOISE.fullmatch(line):
            self.last_lines.append(line)
            with contextlib.suppress(BrokenPipeError):  # Nobody reads it any more; the log goes on.
                show(f"[{self._label}] {line}")

    def status(self) -> int | None:
        """Returns its exit status, negative if a signal killed it; None while it runs."""
        return self._popen.poll()

    def silent(self, now: float, allowed: float) -> float:
        """Returns the seconds since its last heartbeat, or its start, if they are too many, or 0.

        Args:
            now: The time, of `time.monotonic`.
            allowed: Seconds that are not too many; until the first heartbeat, a minute at least.
        """
        allowed = allowed if self.last_beat else max(allowed, _START_SECONDS)
        seconds = now - (self.last_beat or self.began)
        return seconds if seconds > allowed else 0.0

    def signal(self, number: int) -> None:
        """Has the process, wherever it is, give a signal to itself."""
        self._order(f"{number}\n".encode())

    def _order(self, line: bytes) -> None:
        assert self._popen.stdin is not None
        with contextlib.suppress(OSError):
            self._popen.stdin.write(line)
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


def one_at_a_time(show: Show) -> Show:
    """Returns what shows whole lines, of processes that are each read by a thread of their own."""
    speaking = threading.Lock()

    def show_whole(line: str) -> None:
        with speaking:
            show(line)

    return show_whole


def how_it_ended(status: int) -> str:
    """Returns how a process ended, for people."""
    return f"was killed by {signal_name(-status)}" if status < 0 else f"ended with status {status}"


def exit_status_of(status: int) -> int:
    """Returns the exit status that a shell would give it."""
    return 128 - status if status < 0 else status


def signal_name(number: int) -> str:
    """Returns the name of a signal."""
    return signal.Signals(number).name
