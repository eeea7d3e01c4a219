"""The smaller commands: what they print, and what they refuse."""

import pytest

from launch import bench, compare, theory

TRACE = ("--channel", "trace", "--trace", __file__)  # Any file: it is not read.


def test_theory_prints_predicted_beside_measured(capsys):
    arguments = ["--num-workers", "2", "--drop-rates", "0.1", "--num-exchanges", "50"]
    assert theory.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 80 for line in lines)
    workers, lost, contraction, _, _, drift, _, _ = lines[-1].replace("±", " ").split()
    assert (int(workers), float(lost)) == (2, 0.1)
    assert float(contraction) == pytest.approx(0.145 - 0.1125)
    assert float(drift) == pytest.approx(0.1125)


@pytest.mark.parametrize(
    ("command", "arguments", "expected"),
    [
        (theory, ["--num-workers", "1"], "--num-workers 1: expected at least 2"),
        (theory, ["--drop-rates", "2"], "--drop-rates 2.0: expected probabilities in [0, 1]"),
        (bench, ["--rounds", "0"], "--rounds 0: expected at least 1"),
        (bench, ["--workers-per-device", "3"], "--workers-per-device 3: expected a divisor of 8"),
        (compare, ["--drop-rates", "1.5"], "--drop-rates 1.5: expected probabilities in [0, 1]"),
        (compare, ["--seeds", "-1"], "--seed -1: expected an integer in [0, 2^32)"),
        (compare, ["--", "--drop-rate", "0.3"], "--drop-rate 0.3: expected none after --"),
        (compare, ["--", *TRACE], "--channel trace: expected none after --"),
        (compare, ["--", "--epochs", "0"], "--epochs 0: expected at least 1"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    command, arguments, expected, capsys, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    assert command.main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {expected}")
    assert not list(tmp_path.iterdir())
