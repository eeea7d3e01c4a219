"""launch.compare: the settings of a grid, and what a comparison leaves behind."""

import csv
import dataclasses
import json
import os
from pathlib import Path

import jax
import numpy as np
import pytest
from matplotlib.figure import Figure

from launch import compare
from launch.cli.command_line import UsageError
from launch.comparison import report
from launch.comparison.grid import Setting, groups_of, settings_of
from launch.config import PRESETS, TrainConfig
from launch.figures import picture
from launch.figures.runs import Curve
from launch.reports.curves import draw_curves
from launch.reports.intervals import Interval
from launch.reports.tables import text_table
from launch.tasks.source import find_source
from launch.trainer import many_runs, training
from launch.trainer.recorder import Diverged
from launch.trainer.run_directory import RunDirectory


def settings(flags, **axes):
    return settings_of(axes, groups_of(flags.split()))


def test_a_comparison_leaves_a_table_a_picture_and_its_runs_and_repeats_nothing(
    capsys, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(many_runs, "start_devices", lambda *workers: None)
    flags = "--preset linear --num-workers 4 --batch-size 90 --epochs 2"
    flags += " -- --drop-rate 0 0.3 -- --algorithm local"
    arguments = ["--output-dir", "out", "--predict", "--", *flags.split()]
    assert compare.main(arguments) == 0
    printed = capsys.readouterr().out
    names = {f"{name}-seed-0" for name in ("drop-rate-0", "drop-rate-0.3", "algorithm-local")}
    files = {"table.md", "curves.csv", "curves.png", "run.json", "writer.lock"}
    assert set(os.listdir("out")) == names | files
    table = Path("out/table.md").read_text()
    header, _, *cells = [row.split(" | ") for row in table.splitlines()]
    assert [row[0] for row in cells] == ["| drop rate 0", "| drop rate 0.3", "| local"]
    for name in ("consensus distance", "predicted"):
        _, some, _ = (row[header.index(name)] for row in cells)
        assert some in printed
    nothing, some, unknown = (row[header.index("predicted")] for row in cells)
    assert (nothing, unknown) == ("0", "")
    assert float(some) > 0
    *_, end = printed.split("training")
    assert max(map(len, end.splitlines())) <= 80
    with open("out/curves.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1.0", "2.0"] * len(names)
    apart = {(row["algorithm"], row["drop_rate"]): row["consensus_distance"] for row in rows}
    assert 0 < float(apart["", "0.3"]) < float(apart["local", ""])
    how = json.loads(Path("out/run.json").read_text())
    assert how["command"] == f"python -m launch.compare --seeds 0 --predict -- {flags}"
    (machine,) = how["trained_on"]
    assert machine["trainings"] == len(names)
    assert machine["versions"]["jax"] == jax.__version__

    # One of the runs comes from elsewhere.
    summary = Path("out/algorithm-local-seed-0/summary.json")
    summary.write_text(json.dumps(json.loads(summary.read_text()) | {"machine": "another"}))

    assert compare.main(arguments) == 0
    assert "epoch 2/2" not in capsys.readouterr().out
    assert Path("out/table.md").read_text() == table
    made = json.loads(Path("out/run.json").read_text())["trained_on"]
    assert [kind["trainings"] for kind in made] == [2, 1]

    # Nor is a run whose last lines are gone taken for one that is done.
    metrics = Path("out/algorithm-local-seed-0/metrics.jsonl")
    first, last = metrics.read_text().splitlines(keepends=True)
    for damaged in ("", first, first + last[:50], f"x\n{last}"):
        metrics.write_text(damaged)
        assert compare.main(arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: {metrics}: expected whole lines up to step ")


def test_where_a_run_diverges_the_others_go_on(capsys, monkeypatch, tmp_path):
    measured = ("train_loss", "mean_model_train_loss", "test_accuracy", "consensus_distance")
    line = dict.fromkeys((*measured, "delivered_fraction", "examples_per_second"), 0.5)
    summary = {"score": "test_accuracy", "test_accuracy": 0.5, "wall_seconds": 1, "step": 4}

    def train(run, source, path, **options):
        folder = RunDirectory(path)
        folder.create(run)
        if run.learning_rate > 1:
            raise Diverged("the training loss is inf")
        folder.append(line | {"step": 4, "epoch": 1.0})
        folder.summary.write_text(json.dumps(summary | {"data": source.description}))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(many_runs, "start_devices", lambda *workers: None)
    monkeypatch.setattr(training, "train", train)
    arguments = ["--algorithms", "local", "--output-dir", "out", "--", "--preset", "linear"]
    assert compare.main([*arguments, "--learning-rate", "1e38"]) == 3
    assert capsys.readouterr().err == "error: of every setting, a training has diverged\n"
    assert compare.main([*arguments, "--learning-rate", "1e38", "0.1"]) == 3
    one, other = Path("out/table.md").read_text().splitlines()[2:]
    assert one.startswith("| local, learning rate 1e38 | diverged |  |")
    assert other.startswith("| local, learning rate 0.1 | 0.5 |")
    with open("out/curves.csv") as file:
        assert {row["learning_rate"] for row in csv.DictReader(file)} == {"0.1"}


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


@pytest.mark.parametrize("num_epochs", [3, 10])
def test_epochs_are_whole_numbers_in_every_picture(num_epochs, monkeypatch, tmp_path):
    keys = ("mean_model_train_loss", "train_loss", "consensus_distance", "test_accuracy")
    line = dict.fromkeys((*keys, "test_loss"), 0.5)
    lines = [line | {"epoch": float(1 + epoch)} for epoch in range(num_epochs)]
    curve = Curve("rps", 90, 1.0 + np.arange(num_epochs), *[np.full((1, num_epochs), 0.5)] * 4)
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **_: figures.append(figure))

    report.draw([report.Result(Setting((), TrainConfig()), [lines])], "test_accuracy", tmp_path)
    draw_curves(lines, "test_accuracy", 4, "a run", tmp_path)
    picture.draw([curve], {}, "test_accuracy", "a figure", tmp_path)
    picture.draw_distance([curve], "a figure", tmp_path)
    ticks = [
        axes.get_xticks()
        for figure in figures
        for axes in figure.axes
        if axes.get_xlabel() == "epoch"
    ]
    assert len(ticks) == 2 + 3 + 2 + 1
    for each in ticks:
        np.testing.assert_array_equal(each, each.round())


@pytest.mark.parametrize(("distance", "scale"), [(0.0, "linear"), (0.5, "log")])
def test_the_scale_of_distances_is_logarithmic_where_there_are_any(
    distance, scale, monkeypatch, tmp_path
):
    line = dict.fromkeys(("mean_model_train_loss", "test_accuracy", "epoch"), 1.0)
    results = [
        report.Result(Setting((), TrainConfig()), [[line | {"consensus_distance": each}]])
        for each in (0.0, distance)
    ]
    curve = Curve("rps", 90, np.ones(1), *[np.full((1, 1), distance)] * 4)
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **_: figures.append(figure))
    report.draw(results, "test_accuracy", tmp_path)
    picture.draw_distance([curve], "a figure", tmp_path)
    panels = [axes for figure in figures for axes in figure.axes]
    scales = [x.get_yscale() for x in panels if x.get_ylabel().startswith("consensus distance")]
    assert scales == [scale, scale]


def test_settings_whose_flags_make_one_name_have_folders_of_their_own():
    found = settings("--learning-rate 1e+1 1e-1 0.5")
    first, second, plain = [setting.run(Path("x"), 0).output_dir for setting in found]
    assert first != second
    assert {path.name[:19] for path in (first, second)} == {"learning-rate-1e-1-"}
    assert plain == Path("x/learning-rate-0.5-seed-0")
    # Others beside them, or another order, change nothing.
    again = settings("--learning-rate 1e-1 1e+1")
    assert [setting.run(Path("x"), 0).output_dir for setting in again] == [second, first]


def test_runs_that_share_a_folder_are_refused(tmp_path):
    base = dataclasses.replace(PRESETS["linear"], output_dir=tmp_path / "run")
    runs = [base, dataclasses.replace(base, seed=1)]
    with pytest.raises(UsageError, match=f"^{tmp_path}/run: expected a folder for each run"):
        many_runs.train_all(runs, find_source(base))
    assert list(tmp_path.iterdir()) == []


def test_drop_rates_are_told_apart_in_all_their_digits():
    config = compare.CompareConfig(algorithms=("rps",), drop_rates=(0.1, 0.1000000001))
    found = compare._settings(config, [])
    assert [setting.config.drop_rate for setting in found] == [0.1, 0.1000000001]


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
    header, rows = report.table(results, "test_accuracy", predict=True)
    assert header[-3:] == ["predicted", "delivered", "seconds an exchange"]
    assert [label for label, _ in rows] == [f"number {i}" for i in range(number)]


@pytest.mark.parametrize("label", ["rps", "gilbert-elliott, mean burst 8, " + "packets 64, " * 9])
def test_seven_columns_of_a_table_fit_a_terminal(label):
    found = Interval(0.00067, 0.00013)
    cells = [
        found,
        Interval(3.1e-9, 1.2e-9),
        Interval(0.98, float("nan")),
        None,
        found,
        found,
        found,
    ]
    header = ["training loss", "consensus distance", "seconds an exchange", *"abcd"]
    lines = text_table(header, [(label, cells), ("short", cells)])
    assert max(map(len, lines)) <= 80
    assert sum(line.count("0.00067") for line in lines) == 8
    assert sum(line.count("± 0.00013") for line in lines) == 8
    assert set(label.split()) <= set(" ".join(lines).split())
