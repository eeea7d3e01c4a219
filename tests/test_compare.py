"""launch.compare: the settings of a grid, and what a comparison leaves behind."""

import csv
import json
import os
from pathlib import Path

import pytest

import rps_jax as rps
from launch import compare
from launch.cli.command_line import UsageError
from launch.comparison import report
from launch.comparison.grid import Setting, groups_of, settings_of
from launch.comparison.prediction import noise_distances, with_prediction
from launch.config import TrainConfig
from launch.trainer import many_runs


def settings(flags, **axes):
    return settings_of(axes, groups_of(flags.split()))


def test_a_comparison_leaves_a_table_a_picture_and_its_runs_and_repeats_nothing(
    capsys, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(many_runs, "start_devices", lambda *workers: None)
    flags = "--preset linear --num-workers 4 --batch-size 90 --epochs 2"
    flags += " -- --drop-rate 0 0.3 -- --algorithm local"
    arguments = ["--output-dir", "out", "--", *flags.split()]
    assert compare.main(arguments) == 0
    printed = capsys.readouterr().out
    names = {f"{name}-seed-0" for name in ("drop-rate-0", "drop-rate-0.3", "algorithm-local")}
    files = {"table.md", "curves.csv", "curves.png", "run.json", "writer.lock"}
    assert set(os.listdir("out")) == names | files
    table = Path("out/table.md").read_text()
    assert table in printed
    labels = [row.split(" | ")[0] for row in table.splitlines()[2:]]
    assert labels == ["| drop rate 0", "| drop rate 0.3", "| local"]
    with open("out/curves.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1.0", "2.0"] * len(names)
    apart = {(row["algorithm"], row["drop_rate"]): row["consensus_distance"] for row in rows}
    assert 0 < float(apart["", "0.3"]) < float(apart["local", ""])
    command = json.loads(Path("out/run.json").read_text())["command"]
    assert command == f"python -m launch.compare --seeds 0 -- {flags}"

    assert compare.main(arguments) == 0
    assert "epoch 2/2" not in capsys.readouterr().out
    assert Path("out/table.md").read_text() == table


def test_every_combination_of_the_axes_values_is_a_setting():
    found = settings("--server received stale --epochs 3 --drop-rate 0.1 0.2")
    assert [setting.label for setting in found] == [
        f"server {server}, drop rate {rate}"
        for server in ("received", "stale")
        for rate in (0.1, 0.2)
    ]
    assert {(x.config.server, x.config.drop_rate, x.config.epochs) for x in found} == {
        (server, rate, 3) for server in ("received", "stale") for rate in (0.1, 0.2)
    }


def test_alternatives_add_flags_or_replace_them():
    found = settings(
        "--epochs 3 -- --packets 4 --all-or-nothing -- "
        "--channel outage --away-rate 0.1 --epochs 2 -- --packets 4 --all-or-nothing"
    )
    assert [setting.label for setting in found] == [
        "packets 4, all or nothing",
        "epochs 2, outage, away rate 0.1",
    ]
    assert found[0].config.all_or_nothing
    assert [setting.config.epochs for setting in found] == [3, 2]


def test_algorithms_without_drops_run_once_and_have_no_channel():
    found = settings(
        "--epochs 3 -- --drop-rate 0.1 0.2 -- --channel outage --away-rate 0.1",
        algorithm=["rps", "local"],
    )
    assert [setting.label for setting in found] == [
        "rps, drop rate 0.1",
        "rps, drop rate 0.2",
        "local",
        "rps, outage, away rate 0.1",
    ]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("-- --algorithm rps -- --algorithm local --channel outage", "--channel outage requires"),
        ("--algorithm local --channel outage", "--channel outage requires --algorithm"),
        ("--algorithm rps local --server stale", "--server stale requires --algorithm"),
        ("--channel bernoulli outage --away-rate 0.1", "--away-rate 0.1 requires --channel"),
    ],
)
def test_combinations_without_sense_are_refused(flags, expected):
    with pytest.raises(UsageError, match=expected):
        settings(flags)


def test_settings_have_folders_of_their_own():
    flags = "--on-miss own stale --local-steps 1 4"
    folders = {
        setting.run(Path("x"), seed).output_dir for setting in settings(flags) for seed in (0, 1)
    }
    assert Path("x/on-miss-own-local-steps-4-seed-1") in folders
    assert len(folders) == 8


@pytest.mark.parametrize("number", [1, 14])
def test_a_comparison_has_room_for_any_number_of_settings(number, tmp_path):
    keys = ("mean_model_train_loss", "consensus_distance", "test_accuracy", "delivered_fraction")
    line = dict.fromkeys(keys, 0.5) | {"epoch": 1, "exchange_seconds": 0.25}
    results = [
        report.Result(Setting((("algorithm", f"number {i}"),), TrainConfig()), [[line], [line]])
        for i in range(number)
    ]
    report.draw(results, "test_accuracy", tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 0
    header, _, *rows = report.table(results, "test_accuracy").splitlines()
    assert header.endswith("| delivered | seconds an exchange |")
    assert [row.split(" | ")[0] for row in rows] == [f"| number {i}" for i in range(number)]


def test_the_distance_of_noise_is_that_of_theory():
    rate = 0.5
    flags = (
        f"--num-workers 8 --momentum 0 --schedule constant --learning-rate {rate} --drop-rate 0.2"
    )
    (setting,) = settings(flags)
    distances = noise_distances(setting.config, 100)[:, 10:]
    expected = rps.theory.steady_consensus_distance(8, 0.2, 0.5, gradient_variance=1.0)
    of_trainings = (distances**2).mean(1)
    error = of_trainings.std(ddof=1) / len(of_trainings) ** 0.5
    assert abs(of_trainings.mean() - expected**2) < 5 * error
    assert error < 0.05 * expected**2


def test_predictions_have_the_scale_of_the_first_setting_that_drops():
    results = []
    for setting in settings("--num-workers 4 --drop-rate 0 0.2 0.4"):
        lines = [{"step": 5, "consensus_distance": 3.0}, {"step": 9, "consensus_distance": 5.0}]
        results.append(report.Result(setting, [lines, lines]))
    nothing, first, second = (result.predicted for result in with_prediction(results))
    assert max(nothing) < 1e-3
    assert first == ()
    assert 4 < second[0] < 12
