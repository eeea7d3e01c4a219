"""The supervisor with small scripts for processes; tests/test_faults.py has real trainings."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from launch.cli.command_line import PEER_LOST
from launch.distributed.process import Command, JobFailed, Process
from launch.distributed.supervisor import supervise
from launch.trainer import preemption

ROOT = Path(__file__).parents[1]
PREAMBLE = """
import os, signal, sys, time
from launch.distributed.heartbeat import start_heartbeat
start_heartbeat()
"""
FOREVER = "time.sleep(600)"


def script(body: str, place: str = "") -> Command:
    return Command([sys.executable, "-c", PREAMBLE + body], {"PYTHONPATH": str(ROOT)}, place)


class Run:
    """A job of small scripts, and what was shown of it."""

    def __init__(self, logs: Path) -> None:
        self.logs = logs
        self.shown: list[str] = []

    def __call__(self, *commands: Command, silence: float = 60.0) -> int:
        return supervise(commands, self.logs, silence, self.shown.append)

    def failure(self, *commands: Command, silence: float = 60.0) -> JobFailed:
        with pytest.raises(JobFailed) as raised:
            self(*commands, silence=silence)
        return raised.value

    def soon(self, text: str, act: object) -> None:
        """Acts, in a thread of its own, once every process has said `text`."""

        def wait() -> None:
            while sum(text in line for line in list(self.shown)) < 2:
                time.sleep(0.02)
            act()  # type: ignore[operator]

        threading.Thread(target=wait, daemon=True).start()


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "logs")


def assert_gone(process_id: int) -> None:
    for _ in range(500):
        try:
            state = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return
        if state == "Z":
            return
        time.sleep(0.02)
    raise AssertionError(f"process {process_id} is still there")


def test_what_the_processes_say_is_shown_with_their_numbers_and_kept(run: Run) -> None:
    say = "print('first'); print('second', file=sys.stderr)"
    assert run(script(say), script("print('[Gloo] Rank 1 is connected'); print('other')")) == 0
    assert sorted(run.shown) == ["[0] first", "[0] second", "[1] other"]
    assert (run.logs / "process-1.log").read_text().splitlines() == [
        *("[Gloo] Rank 1 is connected", "other")
    ]
    # Heartbeats are for the supervisor alone.
    assert (run.logs / "process-0.log").read_text().splitlines() == ["first", "second"]


def test_what_cannot_be_kept_on_a_full_disk_is_shown(run: Run) -> None:
    run.logs.mkdir()
    (run.logs / "process-0.log").symlink_to("/dev/full")
    assert run(script("print('first', flush=True); print('second')")) == 0
    assert run.shown == ["[0] first", "[0] second"]


def test_the_first_that_fails_ends_the_others_and_its_last_lines_are_the_error(run: Run) -> None:
    there = run.logs / "there"
    body = f"""
while not os.path.exists({str(there)!r}):
    time.sleep(0.02)
[print('line', i) for i in range(20)]
sys.exit(7)
"""
    waiting = script(f"print(os.getpid(), flush=True); open({str(there)!r}, 'w'); {FOREVER}")
    failure = run.failure(waiting, script(body, place="b"))
    assert failure.exit_status == 7
    first, *lines = failure.report().splitlines()
    assert first.startswith("error: process 1 on b ended with status 7 after ")
    assert lines == [f"  line {i}" for i in range(12, 20)]
    assert_gone(next(int(line.split()[1]) for line in run.shown if line.startswith("[0]")))


def test_a_process_that_is_killed_is_named_with_its_signal(run: Run) -> None:
    failure = run.failure(script("os.kill(os.getpid(), signal.SIGKILL)"), script(FOREVER))
    assert failure.exit_status == 128 + signal.SIGKILL
    assert str(failure).startswith("process 0 was killed by SIGKILL after")
    assert str(failure).endswith("it had said nothing")


@pytest.mark.parametrize("left", [f"os._exit({PEER_LOST})", "os.abort()"])
def test_who_was_left_alone_is_not_to_blame(run: Run, left: str) -> None:
    failure = run.failure(script(left), script("time.sleep(0.5); sys.exit('the cause')"))
    assert str(failure).startswith("process 1 ended with status 1")
    assert str(failure).endswith("the cause")


def test_who_was_left_alone_is_named_where_nobody_else_has_failed(run: Run) -> None:
    failure = run.failure(script(f"print('why'); sys.exit({PEER_LOST})"), script(FOREVER))
    assert str(failure).startswith(f"process 0 ended with status {PEER_LOST}")
    assert str(failure).endswith("why")


def test_who_has_gone_silent_by_what_jax_says_is_named(run: Run) -> None:
    says = "The following tasks are unhealthy (stopped sending heartbeats):\\n2\\nThe tasks"
    failure = run.failure(script(f"print('{says}', flush=True); os.abort()"), script(FOREVER))
    expected = "process 0 was killed by SIGABRT, because process 2 had gone silent, after"
    assert str(failure).startswith(expected)


def test_a_process_that_hangs_is_found_by_its_silence(run: Run) -> None:
    stop = "time.sleep(1); os.kill(os.getpid(), signal.SIGSTOP)"
    failure = run.failure(script(FOREVER), script(stop), silence=3.0)
    assert "process 1 has sent no heartbeat for 3 s" in str(failure)


def test_a_process_that_cannot_be_started_ends_the_others(run: Run) -> None:
    failure = run.failure(script(FOREVER), Command(["/absent/python"], {}))
    assert "process 1 cannot be started (/absent/python: No such file" in str(failure)


def test_a_signal_to_a_process_that_has_ended_is_no_error(tmp_path: Path) -> None:
    process = Process(0, Command([sys.executable, "-c", ""], {}), tmp_path, print)
    while process.status() is None:
        time.sleep(0.02)
    process.signal(signal.SIGTERM)
    process.kill()


def test_no_log_is_left_where_no_process_was_started(tmp_path: Path) -> None:
    with pytest.raises(JobFailed, match="process 0 cannot be started"):
        supervise([Command(["/absent/python"], {})], tmp_path / "logs", 60.0, print)
    assert not list(tmp_path.iterdir())


STOPPABLE = """
def stop(number, frame):
    print("saved", flush=True)
    sys.exit(128 + number)
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, stop)
print("ready", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_passed_on_and_waited_for(run: Run, number: signal.Signals) -> None:
    def twice() -> None:  # As some schedulers do.
        signal.raise_signal(number)
        signal.raise_signal(number)

    run.soon("ready", twice)
    assert run(script(STOPPABLE), script(STOPPABLE)) == 128 + number
    assert [line for line in sorted(run.shown) if "saved" in line] == ["[0] saved", "[1] saved"]


def test_a_failure_while_stopping_is_a_failure(run: Run) -> None:
    run.soon("ready", lambda: signal.raise_signal(signal.SIGINT))
    fails = STOPPABLE.replace("sys.exit(128 + number)", "sys.exit('no space')")
    failure = run.failure(script(STOPPABLE), script(fails))
    assert str(failure).startswith("process 1 ended with status 1")
    assert not failure.may_restart


def test_a_second_signal_ends_what_does_not_stop(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preemption, "_SAME_REQUEST_SECONDS", 0.01)
    deaf = STOPPABLE.replace("    sys.exit(128 + number)\n", "")

    def twice() -> None:
        signal.raise_signal(signal.SIGINT)
        while not any("saved" in line for line in list(run.shown)):
            time.sleep(0.02)
        signal.raise_signal(signal.SIGINT)

    run.soon("ready", twice)
    assert run(script(deaf), script(deaf)) == 128 + signal.SIGINT


def test_nothing_stays_behind_when_the_supervisor_is_killed(tmp_path: Path) -> None:
    supervisor = f"""
import sys
from pathlib import Path
from launch.distributed.process import Command
from launch.distributed.supervisor import supervise
body = {PREAMBLE!r} + "print(os.getpid(), flush=True); time.sleep(600)"
supervise([Command([sys.executable, "-c", body], {{}})] * 2, Path({str(tmp_path)!r}), 60.0,
    lambda line: print(line, flush=True))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", supervisor],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    with process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(2)]
        process.kill()
    started = [int(line.split()[1]) for line in lines]
    for process_id in started:
        assert_gone(process_id)
