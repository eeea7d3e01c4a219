"""`--record`: the drops of a simulated run, replayed as a trace."""

from pathlib import Path

import numpy as np
import pytest
from run_files import read_metrics, saved_state

import launch.train
import rps_jax as rps

SMALL = ("--preset", "linear", "--num-workers", "4", "--batch-size", "32", "--epochs", "1")
SMALL += ("--log-every", "4")


@pytest.fixture(autouse=True)
def devices_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch.train, "start_devices", lambda *workers: None)


def run(folder: Path, *flags: str) -> int:
    return launch.train.main([*SMALL, "--output-dir", str(folder), *flags])


@pytest.mark.parametrize(
    "flags",
    [
        ("--drop-rate", "0.3"),
        *(
            pytest.param(flags, marks=pytest.mark.long)
            for flags in (
                ("--channel", "gilbert-elliott", "--mean-burst", "3", "--packets", "11"),
                ("--drop-rate", "0.3", "--assignment", "fixed"),
                ("--channel", "deadline", "--algorithm", "gradient-averaging"),
                ("--channel", "gilbert-elliott", "--local-steps", "3"),
                ("--channel", "outage", "--mean-outage", "2", "--workers-per-device", "4"),
            )
        ),
    ],
)
def test_a_recorded_run_is_replayed_bit_for_bit(tmp_path: Path, flags: tuple[str, ...]) -> None:
    trace = tmp_path / "of" / "drops.npz"
    assert run(tmp_path / "recorded", *flags, "--record", str(trace)) == 0
    kept = (
        "--algorithm",
        "--local-steps",
        "--workers-per-device",
    )  # The rule, and what decides how sums round.
    pairs = zip(flags[::2], flags[1::2], strict=True)
    replayed = [part for pair in pairs if pair[0] in kept for part in pair]
    assert run(tmp_path / "replayed", *replayed, "--channel", "trace", "--trace", str(trace)) == 0

    loaded = rps.Trace.load(trace)
    assert len(loaded.arrived) == (3 if "--local-steps" in flags else 11)
    assert loaded.packets == (11 if "--packets" in flags else 1)
    assert ("fixed" in flags) == (not np.any(loaded.shifts))
    before, after = (
        saved_state(tmp_path / name, 11)["params"] for name in ("recorded", "replayed")
    )
    np.testing.assert_equal(after, before)
    lines = [read_metrics(tmp_path / name)[-1] for name in ("recorded", "replayed")]
    for name in ("delivered_fraction", "consensus_distance", "test_loss"):
        assert lines[0][name] == lines[1][name]
    files = sorted(path.name for path in trace.parent.iterdir())
    assert files == [trace.name, f"{trace.name}.png"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--algorithm", "local"), "--record {} requires --algorithm rps or"),
        (("--resume",), "--record {} is not allowed beside --resume"),
        (
            ("--channel", "trace", "--trace", "link"),
            "--record {} is not allowed beside --trace link",
        ),
    ],
)
def test_what_cannot_be_recorded_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    folder, trace = tmp_path / "run", tmp_path / "drops.npz"
    trace.touch()
    Path("link").symlink_to(trace)
    if "--resume" in flags:
        assert run(folder) == 0
    before = sorted(tmp_path.iterdir())
    capsys.readouterr()
    assert run(folder, *flags, "--record", str(trace)) == 2
    assert capsys.readouterr().err.startswith("error: " + message.format(trace))
    assert sorted(tmp_path.iterdir()) == before


def test_a_file_that_cannot_be_written_is_refused_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "run", "--record", str(tmp_path)) == 2
    assert (
        capsys.readouterr().err == f"error: --record {tmp_path}: expected a file, found a folder\n"
    )
    (tmp_path / "file").touch()
    assert run(tmp_path / "run", "--record", str(tmp_path / "file" / "drops.npz")) == 2
    expected = f"error: --record {tmp_path / 'file'}: expected a folder that can be written"
    assert capsys.readouterr().err.startswith(expected)
    assert not (tmp_path / "run").exists()
