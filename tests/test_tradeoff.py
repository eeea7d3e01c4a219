"""Training under the drops of a simulated queue, from the queue to the picture."""

import csv
import dataclasses
from pathlib import Path

import numpy as np
import pytest

import launch.colocate
import launch.trainer.many_runs
import rps_jax as rps
from launch.cli.command_line import UsageError
from launch.colocation import tradeoff
from launch.colocation.tradeoff import TradeoffConfig
from rps_jax.colocation import Result

FLAGS = (
    "--web-rate",
    "800",
    "--thresholds-kb",
    "100",
    "--iterations",
    "3",
    "--seeds",
    "0",
    "--algorithms",
    "rps",
)
TRAINING = ("--num-workers", "4", "--batch-size", "32", "--epochs", "1")


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launch.trainer.many_runs, "start_devices", lambda *workers: None)


@pytest.mark.long
def test_a_point_of_both_halves(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["tradeoff", *FLAGS, "--output-dir", "out", "--", *TRAINING]
    assert launch.colocate.main(argv) == 0
    with open("out/tradeoff.csv") as file:
        queue, independent = csv.DictReader(file)
    assert (queue["drops"], independent["drops"]) == ("of the queue", "independent")
    assert 0 < float(queue["learning_drop_fraction"]) < 1
    assert 0 < float(queue["test_accuracy"]) <= 1

    # The run was trained with what the simulation recorded, at the rate that the table gives.
    (path,) = Path("out").glob("trace-100kB-*.npz")
    trace = rps.Trace.load(path)
    bits = np.unpackbits(np.asarray(trace.arrived), axis=-1, count=trace.packets)
    between = bits[:, :, ~np.eye(4, dtype=bool)]
    assert float(queue["learning_drop_fraction"]) == pytest.approx(1 - between.mean())
    assert "drops as in trace-100kB-" in capsys.readouterr().out
    for name in ("tradeoff.png", "table.md", "run.json"):
        assert (Path("out") / name).stat().st_size > 0

    # Nothing is done twice.
    assert launch.colocate.main(argv) == 0
    assert "epoch" not in capsys.readouterr().out
    # Nor are results of other flags passed off as these.
    assert launch.colocate.main([*argv, "--clip-norm", "5"]) == 2
    assert "error: --clip-norm 5.0: expected None, as the run in" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("--iterations", "0"), "--iterations 0: expected in [1, 1405]"),
        (("--iterations", "1406"), "--iterations 1406: expected in [1, 1405]"),
        (("--seeds",), "--seeds: expected at least one"),
        (("--web-rate", "20000"), "--web-rate 20000"),
        (("--web-rate", "0"), "--web-rate 0.0: expected at least 1"),
        (("--", "--num-workers", "1"), "--num-workers 1: expected an integer in [2, 1000]"),
        (("--", "--num-workers", "2"), "--num-workers 2: expected another value (pacing_mbps="),
        (("--", "--preset", "linear"), "--preset linear: expected a model of at least 4,752 param"),
        (("--", "--algorithm", "rps"), "--algorithm is not allowed after --"),
        (("--algorithms", "rps", "diloco", "--", "--on-miss", "zero"), "--algorithm rps: on_miss="),
        (
            ("--", "--drop-rate", "0.3"),
            "--drop-rate 0.3 is not allowed after --",
        ),
        (("--", "--epochs", "0"), "--epochs 0: expected at least 1"),
    ],
)
def test_bad_input_is_refused_in_one_line(
    argv: tuple[str, ...], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch.colocate.main(["tradeoff", *argv]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {said}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("algorithm", "flag", "value"),
    [("gradient-averaging", "on_miss", "zero"), ("diloco", "outer_momentum", "0.5")],
)
def test_flags_after_the_dashes_are_those_of_the_algorithms(
    algorithm: str, flag: str, value: str
) -> None:
    config = TradeoffConfig(algorithms=(algorithm,))
    base = tradeoff._base(config, [f"--{flag.replace('_', '-')}", value])
    assert str(getattr(base, flag)) == value


def test_the_warm_up_is_neither_recorded_nor_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    config = TradeoffConfig(web_rate=500, thresholds_kb=(1,), iterations=4, output_dir=Path())
    fifo = tradeoff._fifo(config, num_workers=3)
    arrived = np.ones((5, 2, 3, 3, 7), bool)
    arrived[0] = False
    arrived[4, 1] = np.eye(3, dtype=bool)[..., None]
    completion_ms = np.array([2.0, np.nan])
    result = Result(completion_ms, 0, 0, np.zeros(0), np.zeros(0), {}, 0, 0.0, arrived)
    monkeypatch.setattr(tradeoff, "measure_all", lambda *job, **options: [result.summary()])
    monkeypatch.setattr(tradeoff, "simulate", lambda settings, record: result)

    (point,), unfinished = tradeoff._simulate(config, fifo)
    assert len(rps.Trace.load(point.trace).arrived) == config.iterations
    assert (point.reduce_scatter_drops, point.all_gather_drops) == (0, 0.25)
    assert (point.speedup, unfinished) == (1, 2)

    nothing = dataclasses.replace(result, completion_ms=completion_ms[1:])
    monkeypatch.setattr(tradeoff, "measure_all", lambda *job, **options: [nothing.summary()])
    with pytest.raises(UsageError, match=r"^--iterations 4: expected more: of 500 messages a"):
        tradeoff._simulate(config, fifo)
