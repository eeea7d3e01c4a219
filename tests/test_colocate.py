"""The commands of the packet simulation: what they print, write, refuse, and never do twice."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from launch import colocate
from launch.cli.command_line import CommandError
from launch.colocation import fig6, fig7, plan, sweep
from launch.colocation.sweep import Job
from rps_jax.colocation import Settings

ROOT = Path(__file__).parents[1]
# A simulation of a tenth of a second.
SHORT = ["--duration", "0.1", "--warmup", "0.02"]
KEYS = {
    "mean_completion_ms",
    "p99_completion_ms",
    "completed",
    "unfinished",
    "learning_sent",
    "learning_dropped",
    "learning_drop_fraction",
    "packet_hops",
    "wall_seconds",
}


def simulated(capsys, *arguments):
    """Returns the JSON object of one simulation, the only thing on stdout."""
    assert colocate.main(["simulate", *SHORT, "--json", *arguments]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return json.loads(out)


def test_simulate_prints_one_json_object(capsys):
    found = simulated(capsys, "--web-rate", "5000", "--threshold-bytes", "20000")
    assert found.keys() >= KEYS
    assert found["completed"] > 100
    assert found["unfinished"] == 0
    assert found["learning_drop_fraction"] == found["learning_dropped"] / found["learning_sent"] > 0
    assert 0 < found["mean_completion_ms"] < found["p99_completion_ms"]
    everything = simulated(capsys, "--threshold-bytes", "inf")
    assert everything["learning_dropped"] == 0
    alone = simulated(capsys, "--learning", "none", "--learning-gbps", "2.4")
    assert alone["learning_drop_fraction"] == 0
    assert alone["mean_completion_ms"] < found["mean_completion_ms"]
    strict = ["--discipline", "strict-priority", "--learning-buffer-bytes", "1e6"]
    assert simulated(capsys, *strict)["mean_completion_ms"] < everything["mean_completion_ms"]
    assert simulated(capsys, "--web-rate", "0")["mean_completion_ms"] is None


def test_simulate_prints_a_table_and_says_what_is_not_complete(capsys):
    assert colocate.main(["simulate", *SHORT, "--drain", "0", "--seed", "3"]) == 0
    out, err = capsys.readouterr()
    assert all(len(line) <= 80 for line in out.splitlines())
    assert "threshold (threshold_bytes 100000)" in out
    assert "not complete; the times above are of the others, and too low" in err


def test_a_record_is_what_training_reads(capsys, tmp_path):
    path = tmp_path / "trace.npz"
    arguments = ["--duration", "2.9", "--threshold-bytes", "20000", "--record", str(path)]
    found = simulated(capsys, *arguments)
    with np.load(path) as file:
        assert file.keys() == {"arrived", "packets", "format", "description"}
        assert file["format"] == 1
        packets = int(file["packets"])
        arrived = np.unpackbits(file["arrived"], axis=-1, count=packets).astype(bool)
        description = json.loads(str(file["description"]))
    # 6.92 MB in 16 chunks, in packets of 1460 bytes; four whole iterations of 0.711 s.
    assert arrived.shape == (4, 2, 16, 16, 297)
    assert arrived[:, :, range(16), range(16)].all()
    away = ~np.eye(16, dtype=bool)
    dropped = 1 - arrived[1:][:, :, away].mean()
    assert dropped == pytest.approx(found["learning_drop_fraction"], rel=0.1)
    assert description["summary"]["learning_drop_fraction"] == found["learning_drop_fraction"]
    assert description["settings"]["threshold_bytes"] == 20000
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


def test_fig6_writes_everything_and_repeats_nothing(capsys, tmp_path, monkeypatch):
    arguments = ["fig6", "--web-rates", "5000", "--thresholds-kb", "20", "--seeds", "1", "2"]
    arguments += ["--iterations", "2", "--processes", "1", "--output-dir", str(tmp_path)]
    assert colocate.main(arguments) == 0
    assert "| bursty | 5000 |" in capsys.readouterr().out
    names = {"fig6.csv", "fig6.png", "table.md", "run.json", "points.jsonl"}
    assert {path.name for path in tmp_path.iterdir()} == names
    with (tmp_path / "fig6.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * 3
    by = {(row["learning"], row["seed"], row["discipline"]): row for row in rows}
    for (learning, seed, discipline), row in by.items():
        dropped = float(row["learning_drop_fraction"])
        assert (dropped > 0) == (discipline == "threshold")
        base = by[learning, seed, "fifo"]
        speedup = float(base["mean_completion_ms"]) / float(row["mean_completion_ms"])
        assert float(row["speedup_mean"]) == pytest.approx(speedup)
        assert (speedup > 1) == (discipline != "fifo")

    # Once more, after the last line was cut: nothing but that point is simulated.
    points = tmp_path / "points.jsonl"
    points.write_text(points.read_text()[:-20])
    before = (tmp_path / "fig6.csv").read_text()
    done = []
    plainly = sweep.simulate
    monkeypatch.setattr(sweep, "simulate", lambda s: (done.append(s), plainly(s))[1])
    assert colocate.main(arguments) == 0
    assert len([settings for settings in done if settings.duration > 1]) == 1
    assert (tmp_path / "fig6.csv").read_text() == before


def test_interrupted_sweeps_keep_what_is_finished(tmp_path, monkeypatch):
    jobs = [Job(Settings(duration=0.01, warmup=0.0, seed=seed)) for seed in range(4)]
    path = tmp_path / "points.jsonl"
    simulated = []

    def interrupted(job):
        if len(simulated) == 2:
            raise KeyboardInterrupt
        simulated.append(job)
        return {"seed": job.settings.seed}

    with pytest.raises(KeyboardInterrupt):
        sweep.measure_all(interrupted, jobs, path, processes=1)
    simulated.insert(0, None)
    simulated.insert(0, None)
    found = sweep.measure_all(interrupted, jobs, path, processes=1)
    assert [values["seed"] for values in found] == [0, 1, 2, 3]
    assert len(simulated) == 2 + 4


def kill_from_the_third_on(job):
    if job.settings.seed >= 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return {}


@pytest.mark.long
def test_a_process_that_is_killed_ends_a_sweep_which_keeps_what_is_finished(tmp_path):
    jobs = [Job(Settings(duration=0.01, warmup=0.0, seed=seed)) for seed in range(4)]
    path = tmp_path / "points.jsonl"
    with pytest.raises(CommandError, match=r"^one of the processes has died"):
        sweep.measure_all(kill_from_the_third_on, jobs, path, processes=2)
    assert 1 <= len(path.read_text().splitlines()) <= 2


@pytest.mark.long
@pytest.mark.parametrize("seconds_later", [0.0, 0.1, 1.0])
def test_ctrl_c_ends_a_sweep_in_one_line_with_all_that_it_has_started(seconds_later, tmp_path):
    command = [sys.executable, "-m", "launch.colocate", "fig6", "--output-dir", str(tmp_path)]
    command += ["--processes", "3"]
    options = {"cwd": ROOT, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    with subprocess.Popen(command, **options) as process:
        # As a terminal does it: to all processes, from when the first is being started.
        while not Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text():
            assert process.poll() is None
            time.sleep(0.001)
        time.sleep(seconds_later)
        while process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
            time.sleep(0.05)
        # To its end, which is that of all processes.
        assert (process.stderr.read(), process.returncode) == ("error: interrupted\n", 130)


@pytest.mark.long
def test_processes_change_nothing(tmp_path):
    jobs = [Job(Settings(duration=0.02, warmup=0.0, seed=seed)) for seed in range(3)]
    one, two = (
        sweep.measure_all(sweep.summary, jobs, tmp_path / f"{processes}.jsonl", processes)
        for processes in (1, 2)
    )
    assert one == two


@pytest.mark.parametrize(
    ("target_ms", "reached"), [(1.5, "target"), (0.5, "never"), (1000.0, "capacity")]
)
def test_fig7_finds_the_rate_of_a_mean_or_says_that_there_is_none(target_ms, reached):
    settings = Settings(duration=0.2, warmup=0.02, threshold_bytes=20_000)
    found = fig7.web_rate_at(Job(settings, target_ms))
    assert found["reached"] == reached
    if reached == "target":
        assert found["mean_completion_ms"] == pytest.approx(target_ms, rel=0.02)


@pytest.mark.long
def test_fig7_writes_everything(capsys, tmp_path):
    arguments = ["fig7", "--targets-ms", "3", "0.5", "--thresholds-kb", "20", "--seeds", "1"]
    arguments += ["--iterations", "2", "--processes", "1", "--output-dir", str(tmp_path)]
    assert colocate.main(arguments) == 0
    out = capsys.readouterr().out
    assert "| 3 |" in out
    assert "| 0.5 | never so fast |" in out
    names = {"fig7.csv", "fig7.png", "table.md", "run.json", "points.jsonl"}
    assert {path.name for path in tmp_path.iterdir()} == names


@pytest.mark.parametrize(
    ("command", "found", "expected"),
    [
        ("fig6 --web-rates 1", {"completed": 0}, "--iterations 2: expected more: of 1 messages a"),
        (
            "fig7 --targets-ms 0.01",
            {"reached": "never", "web_rate": 100.0},
            "--targets-ms 0.01: expected longer ones: at 100 messages a second,",
        ),
    ],
)
def test_a_figure_of_nothing_is_refused(command, found, expected, capsys, monkeypatch, tmp_path):
    for figure in (fig6, fig7):
        monkeypatch.setattr(figure, "measure_all", lambda _, jobs, *others: [found] * len(jobs))
    arguments = [*command.split(), "--iterations", "2", "--output-dir", str(tmp_path)]
    assert colocate.main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {expected}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("target_ms", "status", "answer"),
    [
        ("2", 0, "Nothing has to be dropped: under strict priority,"),
        ("1000", 0, "Nothing has to be dropped, and the web needs no priority."),
        ("0.5", 1, "No drop rate is enough: the web alone has a mean above 0.5 ms."),
    ],
)
def test_plan_answers(target_ms, status, answer, capsys, tmp_path):
    arguments = ["plan", *SHORT, "--target-ms", target_ms, "--seeds", "1", "--processes", "1"]
    assert colocate.main([*arguments, "--output-dir", str(tmp_path)]) == status
    out = capsys.readouterr().out
    assert answer in out
    assert all(len(line) <= 80 for line in out.splitlines())
    (alone,) = [line for line in out.splitlines() if line.startswith("web alone")]
    assert alone.split()[-3:-1] == ["-", "-"]  # There is no learning to drop.


def test_plan_finds_no_way_fast_of_which_messages_are_missing(capsys, monkeypatch, tmp_path):
    arguments = ["plan", *SHORT, "--target-ms", "1000", "--seeds", "1", "2", "--processes", "1"]
    arguments += ["--output-dir", str(tmp_path)]
    assert colocate.main([*arguments, "--drain", "0"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: --drain 0.0: expected longer: ")

    def of_one_queue(job):
        found = dict.fromkeys(plan.COLUMNS, 0.5) | {"messages": 200, "unfinished": 0}
        return found | ({"unfinished": 2} if job.settings.discipline == "fifo" else {})

    monkeypatch.setattr(plan, "point", of_one_queue)
    assert colocate.main(arguments) == 0
    out = capsys.readouterr().out
    assert "  open\n  4 messages are not complete; times are of the others, too low\n" in out
    assert "Nothing has to be dropped: under strict priority," in out
    # Of a hundred messages, the slowest may be missing.
    assert colocate.main([*arguments, "--of", "p99"]) == 0
    assert "Nothing has to be dropped, and the web needs no priority." in capsys.readouterr().out


def test_plan_of_a_trace_reads_it_first_and_again_when_it_has_changed(
    capsys, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    arguments = ["plan", *SHORT, "--seeds", "1", "--processes", "1", "--output-dir", "out"]
    arguments += ["--learning", "trace", "--learning-trace", "a.csv"]
    trace = tmp_path / "a.csv"
    trace.write_text("0.1,0,99,1000\n")
    assert colocate.main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: --learning-trace a.csv: expected hosts numbered from 0 to ")
    assert list(tmp_path.iterdir()) == [trace]

    points = []
    for content in ("0.1,0,1,1000\n", "0.1,0,1,1000\n", "0.1,0,1,900\n"):
        trace.write_text(content)
        assert colocate.main(arguments) == 0
        assert " beside the learning of a.csv;\n" in capsys.readouterr().out
        points.append(len((tmp_path / "out" / "points.jsonl").read_text().splitlines()))
    assert points[0] == points[1] < points[2]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("", "launch.colocate: expected one of simulate, plan"),
        ("fly", "launch.colocate fly: expected one of simulate, plan"),
        ("simulate --web-rate x", "--web-rate x: expected a number"),
        ("simulate --web-rate 50000", "--web-rate 50000.0: expected below"),
        ("simulate --speed 3", "--speed, 3: expected the options that --help lists"),
        ("simulate --discipline drr --threshold-bytes 1", "--threshold-bytes 1.0: expected none"),
        ("simulate --learning poisson --record a.npz", "--record a.npz: expected --learning bur"),
        ("simulate --record a.txt", "--record a.txt: expected a file named .npz"),
        ("simulate --duration 0.7 --record a.npz", "--duration 0.7: expected an iteration"),
        (
            "simulate --learning trace --learning-trace no.csv",
            "--learning-trace no.csv: expected a file",
        ),
        ("fig6 --seeds 1 1", "--seeds 1 1: expected each value once"),
        ("fig6 --web-rates -1", "--web-rates -1.0: expected at least 1"),
        ("fig6 --web-rates 20000", "--web-rates 20000.0: expected below"),
        ("fig6 --iterations 1", "--iterations 1: expected in [2, 1000]"),
        ("fig7 --targets-ms 0", "--targets-ms 0.0: expected at least 0.001"),
        ("fig7 --processes 0", "--processes 0: expected at least 1"),
        ("plan --discipline drr", "--discipline drr: expected none: the plan compares"),
        ("plan --learning none", "--learning none: expected learning traffic to plan for"),
        ("validate --seeds 0", "--seeds 0: expected at least 1"),
        ("bench --rounds 0", "--rounds 0: expected at least 1"),
    ],
)
def test_bad_input_is_one_line_and_status_2(arguments, expected, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert colocate.main(arguments.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {expected}")
    assert not list(tmp_path.iterdir())


def test_validate_and_bench_print_tables(capsys):
    # Far too short to be within 2%; what is measured is tested elsewhere.
    assert colocate.main(["validate", "--seeds", "1", "--duration", "0.01"]) in (0, 1)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 15
    assert all(len(line) <= 80 for line in lines)
    assert colocate.main(["bench", "--rounds", "1", "--duration", "0.1"]) == 0
    assert "strict-priority" in capsys.readouterr().out
