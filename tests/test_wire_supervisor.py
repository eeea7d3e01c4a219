"""The processes of a run over UDP: who is started again, what ends a job, and how one stops."""

import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from launch.distributed.process import Command, JobFailed
from launch.trainer import preemption
from launch.wire import supervisor
from launch.wire.supervisor import Ending, supervise_members

ROOT = Path(__file__).parents[1]
KEY = b"0123456789abcdef"


PREAMBLE = """
import os, signal, sys, time
from launch.distributed.heartbeat import *
start_heartbeat()
NUMBER, FOLDER = {number}, {folder!r}
open(f"{{FOLDER}}/{{NUMBER}} {{os.getpid()}}", "w")

def lives(number):
    return [name.split()[1] for name in os.listdir(FOLDER) if name.startswith(f"{{number}} ")]

def runs(number):
    return not lives(number) or os.path.exists(f"/proc/{{lives(number)[-1]}}")

def wait_while(holds):
    while holds():
        time.sleep(0.02)

"""


def scripts(tmp_path, *bodies):
    """How processes of a job are started, the last as the coordinator."""
    folder = tmp_path / "lives"
    folder.mkdir()
    preambles = (PREAMBLE.format(number=n, folder=str(folder)) for n in range(len(bodies)))
    return [
        Command(
            [sys.executable, "-c", preamble + body],
            {"PYTHONPATH": str(ROOT)},
            name=f"member {number}",
            secret=KEY,
        )
        for number, (preamble, body) in enumerate(zip(preambles, bodies, strict=True))
    ]


def supervised_run(tmp_path, *bodies, max_restarts=0, silence=60.0):
    """Runs scripts; returns how the job has ended, and what was shown."""
    shown, commands = [], scripts(tmp_path, *bodies)
    ending = supervise_members(commands, tmp_path / "logs", silence, shown.append, max_restarts)
    return ending, shown


def stopped_run(tmp_path, lines, *bodies, silence=60.0):
    """Runs scripts that are asked to stop when so many lines were shown, or at each such number."""
    shown, commands = [], scripts(tmp_path, *bodies)

    def stop():
        for number in [lines] if isinstance(lines, int) else lines:
            while len(shown) < number:
                time.sleep(0.02)
            signal.raise_signal(signal.SIGINT)

    threading.Thread(target=stop, daemon=True).start()
    return supervise_members(commands, tmp_path / "logs", silence, shown.append, 0), shown


KILLED_ONCE = "if len(lives(NUMBER)) == 1: os.kill(os.getpid(), 9)\n"


def test_a_process_that_dies_is_started_again_and_the_others_go_on(tmp_path):
    until_it_is_back = "wait_while(lambda: len(lives(0)) < 2)"
    ending, shown = supervised_run(tmp_path, KILLED_ONCE, "", until_it_is_back, max_restarts=1)
    assert ending == Ending(0)
    assert shown == ["member 0 was killed by SIGKILL, and is started again"]


@pytest.mark.parametrize("restarts", [1, 2])
def test_a_later_life_whose_place_is_taken_does_not_end_the_job(tmp_path, restarts):
    taken = KILLED_ONCE + "if len(lives(NUMBER)) == 2: sys.exit(2)"
    others = f"wait_while(lambda: len(lives(0)) < {restarts + 1} or runs(0))"
    ending, shown = supervised_run(tmp_path, taken, others, others, max_restarts=restarts)
    assert ending == Ending(0)
    then = ["; the others go on", ", and is started again in 1 s"]
    assert shown == [
        "member 0 was killed by SIGKILL, and is started again",
        f"member 0 ended with status 2{then[restarts - 1]}",
    ]


def test_without_restarts_a_process_that_dies_is_missed(tmp_path):
    ending, shown = supervised_run(tmp_path, "sys.exit(7)", "", "time.sleep(0.5)")
    assert ending == Ending(0)
    assert shown == ["member 0 ended with status 7; the others go on"]


@pytest.mark.parametrize(
    ("bodies", "status", "restarts"),
    [
        (("sys.exit(2)", "time.sleep(60)", "time.sleep(60)"), 2, 1),  # All would end like this.
        ((KILLED_ONCE + "sys.exit(3)", "time.sleep(60)", "time.sleep(60)"), 3, 2),  # And this.
        (("sys.exit(7)", "sys.exit(8)", "time.sleep(60)"), 8, 0),
        (("", "", "sys.exit(5)"), 5, 0),
        ((KILLED_ONCE + "sys.exit(2)", "time.sleep(60)"), 1, 1),
    ],
)
def test_a_job_without_a_result_fails(tmp_path, bodies, status, restarts):
    with pytest.raises(JobFailed) as failed:
        supervised_run(tmp_path, *bodies, max_restarts=restarts)
    assert failed.value.exit_status == status


def test_workers_go_on_without_a_coordinator_to_their_end(tmp_path, monkeypatch):
    monkeypatch.setattr(supervisor, "_LAST_WORDS_SECONDS", 0.0)
    finishes = "wait_while(lambda: runs(2)); time.sleep(0.3); open(f'{FOLDER}/end', 'w')"
    with pytest.raises(JobFailed, match="member 2 ended with status 5"):
        supervised_run(tmp_path, "", finishes, "wait_while(lambda: runs(0)); sys.exit(5)")
    assert (tmp_path / "lives" / "end").exists()


FREEZES = "time.sleep(0.5); os.kill(os.getpid(), signal.SIGSTOP)"  # After a heartbeat.


@pytest.mark.long
@pytest.mark.parametrize("other", ["", FREEZES])
def test_a_coordinator_that_hangs_is_not_waited_for(tmp_path, other):
    silent = r"member 2 has sent no heartbeat for \d+ s, and was ended"
    with pytest.raises(JobFailed, match=silent):
        supervised_run(tmp_path, "", other, FREEZES, silence=3.0)


def test_a_coordinator_that_is_left_alone_is_started_again_once(tmp_path):
    shown = []
    commands = scripts(tmp_path, "", "wait_while(lambda: runs(0)); sys.exit(5)")
    with pytest.raises(JobFailed, match="member 1 ended with status 5"):
        supervise_members(commands, tmp_path / "logs", 60.0, shown.append, 9)
    assert shown == ["member 1 ended with status 5, and is started again"]


WAITS = """
signal.signal(signal.SIGTERM, lambda *_: sys.exit({}))
print(wait_for_secret(20).decode(), flush=True)
time.sleep(60)
"""


def test_every_process_gets_the_key_and_the_signal(tmp_path):
    saves = WAITS.format(128 + signal.SIGTERM)
    ending, shown = stopped_run(tmp_path, 3, saves, WAITS.format(0), saves)
    assert ending == Ending(128 + signal.SIGINT)
    assert sorted(shown) == [f"[member {number}] {KEY.decode()}" for number in range(3)]


def test_workers_that_have_saved_nothing_are_named(tmp_path):
    saves, fails = WAITS.format(128 + signal.SIGTERM), WAITS.format(1)
    begins = "print('begins', flush=True); time.sleep(60)"
    ending, _ = stopped_run(tmp_path, 5, fails, saves, "sys.exit(7)", begins, saves)
    assert ending == Ending(128 + signal.SIGINT, ("member 0", "member 2", "member 3"))


@pytest.mark.long
def test_a_worker_that_hangs_does_not_hold_up_a_stop(tmp_path):
    saves = WAITS.format(128 + signal.SIGTERM)
    ending, _ = stopped_run(tmp_path, 2, saves, FREEZES, saves, silence=3.0)
    assert ending == Ending(128 + signal.SIGINT, ("member 1",))


@pytest.mark.parametrize("lines", [1, (1, 2)])
def test_who_does_not_stop_in_time_or_when_asked_again_is_ended(tmp_path, monkeypatch, lines):
    if lines == 1:
        monkeypatch.setattr(supervisor, "STOP_SECONDS", 0.0)
    monkeypatch.setattr(preemption, "_SAME_REQUEST_SECONDS", 0.001)
    deaf = "signal.signal(signal.SIGTERM, lambda *_: print('asked', flush=True))\n"
    deaf += "print('there', flush=True); time.sleep(60)"
    with pytest.raises(JobFailed, match=r"member 0 did not stop within .* s of SIGINT") as failed:
        stopped_run(tmp_path, lines, deaf, "time.sleep(60)")
    assert failed.value.exit_status == 128 + signal.SIGINT
