"""Training under the drops of a simulated queue, from the queue to the picture."""

import csv
from pathlib import Path

import numpy as np
import pytest

import launch.colocate
import launch.trainer.many_runs
import rps_jax as rps

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
        (("--iterations", "0"), "--iterations 0: expected in [1, 10000]"),
        (("--seeds",), "--seeds: expected at least one"),
        (("--web-rate", "20000"), "--web-rate 20000"),
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
