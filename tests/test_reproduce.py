"""Figures 4 and 5: from the data to the picture, on sentences of a few words."""

import csv
import dataclasses
import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import launch.reproduce
import launch.trainer.many_runs
from data import DataError, Dataset, Source, subset
from launch.config import PRESETS
from launch.figures import paper
from launch.figures.runs import Curve, Shared, plan
from launch.figures.tables import claims, table
from launch.reports.intervals import half_width, interval, values_to_decide
from launch.trainer.preemption import Deadline
from launch.trainer.run_directory import RunDirectory


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launch.trainer.many_runs, "start_devices", lambda *workers: None)


@pytest.fixture
def atis(tmp_path: Path) -> str:
    """Writes a folder of sentences whose every word has a tag of its own."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 64), ("test", 16)):
        folder = tmp_path / "atis" / split
        folder.mkdir(parents=True)
        words = [rng.integers(0, 4, rng.integers(1, 5)) for _ in range(count)]
        for name, prefix in (("seq.in", "w"), ("seq.out", "B-t")):
            lines = (" ".join(f"{prefix}{word}" for word in sentence) for sentence in words)
            (folder / name).write_text("\n".join(lines) + "\n")
        (folder / "label").write_text("flight\n" * count)
    return str(tmp_path / "atis")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the reduced LSTM be of three epochs of two steps, with four workers."""
    scale = paper.SCALES["lstm", "reduced"]
    config = dataclasses.replace(
        scale.config, num_workers=4, batch_size=4, epochs=3, learning_rate=1.0
    )
    reduced = paper.Scale(config, num_train=32, num_test=8, reduced_data="32 sentences")
    monkeypatch.setitem(paper.SCALES, ("lstm", "reduced"), reduced)


@pytest.mark.long
def test_a_figure_and_the_one_that_shares_its_runs(
    atis: str, small: None, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--data-path", atis, "--scale", "reduced"]
    of_figure_4 = ["--seeds", "3", "4", "--arrivals", "100", "90"]
    assert launch.reproduce.main(["fig4c", *argv, *of_figure_4]) == 0
    printed = capsys.readouterr().out
    assert "[4/4] rps-90-4, about" in printed
    folder = Path("docs/results/fig4c-reduced")
    assert printed.endswith(f"results in {folder}/\n")

    with open(folder / "curves.csv") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        *("algorithm", "arrival", "seed", "epoch"),
        *("mean_model_train_loss", "train_loss", "test_metric", "consensus_distance"),
    ]
    assert [(row["arrival"], row["seed"], row["epoch"]) for row in rows] == [
        (arrival, seed, epoch)
        for arrival in ("100", "90")
        for seed in ("3", "4")
        for epoch in ("1", "2", "3")
    ]
    text = (folder / "table.md").read_text()
    assert "reduced: 32 sentences, 3 of 20 epochs" in text
    assert "| models (RPS) | 90% |  |" in text
    assert "| models at 90% are within 0.01 to 0.02 of 100% |" in text
    assert text in printed
    made = json.loads((folder / "run.json").read_text())
    assert made["command"] == (
        "python -m launch.reproduce fig4c --scale reduced --seeds 3 4 --arrivals 100 90 "
        "--on-miss own --dtype float32"
    )
    assert made["data"] == "32 of 64 examples of ATIS"
    assert made["settings"]["momentum"] == made["settings"]["weight_decay"] == 0
    for picture in ("curves.png", "consensus_distance.png"):
        assert (folder / picture).stat().st_size > 10_000

    # Figure 5 trains what figure 4 has not, and nothing is left of what a run alone needs.
    argv += ["--seeds", "3", "--arrivals", "100", "50", "--on-miss", "own", "zero"]
    assert launch.reproduce.main(["fig5c", *argv]) == 0
    printed = capsys.readouterr().out
    names = {"rps-50", "gradient-averaging-100", "gradient-averaging-50"}
    names |= {"gradient-averaging-zero-50"}
    begun = {line.split()[1].rstrip(",") for line in printed.splitlines() if line.startswith("[")}
    assert begun == {f"{name}-3" for name in names}
    assert not list(Path("runs").rglob("checkpoints"))
    text = (Path("docs/results/fig5c-reduced") / "table.md").read_text()
    assert "| gradients at 100% are as good as models at 100% | training loss |" in text


@pytest.mark.long
def test_a_run_of_other_settings_is_not_taken_for_one_of_these(
    atis: str, small: None, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["fig4c", "--data-path", atis, "--scale", "reduced", "--arrivals", "100"]
    assert launch.reproduce.main(argv) == 0
    assert launch.reproduce.main([*argv, "--dtype", "bfloat16"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(
        "error: --dtype bfloat16: expected float32, as the run in runs/reproduce/lstm"
    )


@pytest.mark.long
def test_the_search_takes_the_best_and_outlives_what_diverges(
    atis: str, small: None, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["search", "--data-path", atis, "--scale", "reduced"]
    argv += ["--learning-rates", "0.001", "1e30", "1", "--schedules", "constant"]
    assert launch.reproduce.main(argv) == 0
    lines = Path("docs/results/search-lstm-reduced/table.md").read_text().splitlines()
    slow, diverged, best = lines[-3:]
    assert slow.startswith("| 0.001 | 4 | constant | ")
    assert diverged == "| 1e+30 | 4 | constant | diverged |  |  |"
    assert best.startswith("| 1 | 4 | constant | ")
    assert (slow.endswith("| best |"), best.endswith("| best |")) == (False, True)
    assert "the training loss is nan" in capsys.readouterr().out

    # The same again trains nothing but what has diverged.
    assert launch.reproduce.main(argv) == 0
    assert "[1/3]" not in capsys.readouterr().out


def stop_after_an_epoch(argv: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs a command whose time limit comes when a first line of metrics is written."""
    append = RunDirectory.append

    def append_and_time_out(folder: RunDirectory, line: dict[str, Any]) -> None:
        append(folder, line)
        patch.setattr(Deadline, "signal_number", signal.SIGALRM)

    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "append", append_and_time_out)
        assert launch.reproduce.main(argv) == 128 + signal.SIGALRM


@pytest.mark.long
def test_what_is_stopped_goes_on_with_the_same_command_to_the_same_end(
    atis: str,
    small: None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    argv = ["fig4c", "--data-path", atis, "--scale", "reduced", "--arrivals", "90", "50"]
    argv += ["--time-limit", "1000"]
    assert launch.reproduce.main([*argv, "--runs-dir", "whole", "--output-dir", "whole"]) == 0

    stop_after_an_epoch(argv, monkeypatch)
    assert capsys.readouterr().err == (
        "stopped by the time limit at step 4 of 6, with a checkpoint, in run 1/2; go on with\n"
        "the same command\n"
    )
    assert not Path("docs/results").exists()

    assert launch.reproduce.main(argv) == 0
    assert "resuming at step 4 of 6" in capsys.readouterr().out
    names = ("curves.csv", "table.md")
    assert [(Path("docs/results/fig4c-reduced") / name).read_text() for name in names] == [
        (Path("whole") / name).read_text() for name in names
    ]


@pytest.mark.long
def test_a_time_limit_stops_the_run_that_it_meets(
    atis: str, small: None, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["fig4c", "--data-path", atis, "--scale", "reduced", "--arrivals", "100"]
    assert launch.reproduce.main([*argv, "--time-limit", "1e-9"]) == 128 + signal.SIGALRM
    said = "stopped by the time limit before run 1/1; go on with\nthe same command\n"
    assert capsys.readouterr().err == said
    assert launch.reproduce.main([*argv, "--time-limit", "inf"]) == 0


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ("", "launch.reproduce: expected one of fig4a, fig4b, fig4c, fig5a"),
        ("fig9", "launch.reproduce fig9: expected one of fig4a"),
        ("fig4c", "--data-path: expected the folder of ATIS"),
        ("fig4a --data-path absent", "--data-path absent"),
        ("fig4a --arrivals 101", "--arrivals 101: expected percentages, in [0, 100]"),
        ("fig4a --arrivals", "--arrivals: expected at least one"),
        ("fig4a --seeds 1 1", "--seeds 1 1: expected each value once"),
        ("fig4a --seeds -1 --data-path .", "--seeds -1: expected integers in"),
        ("fig4a --scale big", "--scale big: expected"),
        ("fig4a --on-miss zero", "--on-miss zero: expected none in figure 4, where models are"),
        ("fig4a --time-limit 0", "--time-limit 0.0: expected a positive number of seconds"),
        ("fig5a --output-dir /dev/null/x", "--output-dir /dev/null/x: expected a folder that"),
        ("search --learning-rates 0", "--learning-rates 0.0: expected a positive number"),
        ("search --batch-sizes 4 4", "--batch-sizes 4 4: expected each value once"),
        ("search --model vgg", "--model vgg: expected"),
    ],
)
def test_what_cannot_be_made_is_said_in_one_line(
    argv: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch.reproduce.main(argv.split()) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(f"error: {said}")
    assert printed.err.count("\n") == 1
    assert printed.out == ""


@pytest.mark.parametrize("name", ["fig6", "fig7"])
def test_the_figures_of_the_simulation_are_those_of_colocate(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch.reproduce.main([name, "--seeds", "1", "1"]) == 2
    assert capsys.readouterr().err == "error: --seeds 1 1: expected each value once\n"


def test_a_batch_that_the_data_is_too_small_for_is_refused(
    atis: str, small: None, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["search", "--data-path", atis, "--scale", "reduced", "--batch-sizes", "4", "9"]
    assert launch.reproduce.main(argv) == 2
    said = "error: --batch-size 9: expected at most 8, the training examples of each of 4 workers"
    assert capsys.readouterr().err.startswith(said)
    assert not Path("runs").exists()


def test_every_figure_trains_without_momentum_and_regularisation() -> None:
    commands = launch.reproduce._COMMANDS.keys()
    assert commands == paper.FIGURES.keys() | launch.reproduce._MODULES.keys()
    assert {model for model, _ in paper.SCALES} == {x.model for x in paper.FIGURES.values()}
    for (_, name), scale in paper.SCALES.items():
        config = scale.config
        assert (config.num_workers, config.optimizer) == (16, "sgd")
        assert config.momentum == config.weight_decay == 0
        assert bool(scale.reduced) == (name != "paper")
        assert ("no augmentation" in scale.reduced) == (name == "subset")
        if config.preset.startswith("cifar10") and name == "paper":
            assert config.epochs == 160


def test_runs_that_differ_in_a_late_digit_have_folders_of_their_own() -> None:
    base = dataclasses.replace(PRESETS["linear"], output_dir=Path("runs"))
    arrivals = (90, 99.5, 99.000001, 99.000002)
    names = [run.config.output_dir for run in plan(base, [("rps", x) for x in arrivals], [3])]
    assert names[:2] == [Path("runs/rps-90-3"), Path("runs/rps-99.5-3")]
    assert len(set(names)) == 4


def test_a_scale_that_a_model_does_not_have_is_refused(
    atis: str, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["fig4c", "--data-path", atis, "--scale", "subset"]
    assert launch.reproduce.main(argv) == 2
    said = "error: --scale subset: expected paper or reduced for this model\n"
    assert capsys.readouterr().err == said
    assert not Path("docs").exists()


def curve(shared: Shared, arrival: float, *finals: float) -> Curve:
    values = np.array([[1.0, final] for final in finals])
    return Curve(shared, arrival, np.array([1.0, 2.0]), values, values + 0.1, 1 - values, values)


def test_claims_are_judged_over_the_seeds_that_both_curves_share() -> None:
    found = claims(
        [
            curve("rps", 100, 0.10, 0.20, 0.30),
            curve("rps", 99, 0.101, 0.202, 0.300),
            curve("rps", 90, 0.14, 0.24, 0.34),
            curve("gradient-averaging", 100, 0.10, 0.21, 0.30),
            curve("gradient-averaging", 99, 0.5, 0.1, 0.9),
        ],
        "accuracy",
    )
    verdicts = {(claim.text, claim.quantity): claim.verdict for claim in found}
    assert verdicts["models at 99% are as good as at 100%", "training loss"] == "holds"
    text = "models at 90% are within 0.01 to 0.02 of 100%"
    assert verdicts[text, "training loss"] == "does not hold"
    text = "gradients: worse at 99% than at 100%"
    differences = (0.4, -0.11, 0.6)
    enough = values_to_decide(interval(differences), 3, float(np.mean(differences)))
    assert enough is not None
    assert verdicts[text, "training loss"] == f"open: about {enough} seeds would tell"
    deviation = np.std(differences, ddof=1)
    halves = [half_width(deviation / n**0.5, n) for n in (enough - 1, enough)]
    assert halves[1] < np.mean(differences) <= halves[0]
    assert values_to_decide(interval(differences), 3, 0.0) is None


def test_one_seed_gives_a_verdict_that_says_so() -> None:
    (claim, _) = claims([curve("rps", 100, 0.1), curve("rps", 99, 0.105)], "accuracy")
    assert claim.verdict == "holds, in one seed"


def test_the_table_says_which_loss_the_paper_is_nearer_to() -> None:
    text = table(
        [curve("rps", 100, 0.02), curve("rps", 99, 0.03)], paper.TRAINING_LOSS["lstm"], "F1", (0,)
    )
    assert "nearer to the loss of the mean model (0.01 away in the mean)" in text


def test_a_subset_is_the_same_every_time_and_keeps_rows_together() -> None:
    arrays = {"label": np.arange(10), "image": np.arange(10)[:, None] * 2}
    dataset = Dataset("D", arrays, arrays, "label", 10)
    source = Source("D", 10, lambda: dataset)
    some = subset(source, 4, 3)
    assert (some.num_train, some.description) == (4, "4 of 10 examples of D")
    one, other = some.load(), some.load()
    assert len(one.train["label"]) == 4
    assert len(one.test["label"]) == 3
    assert len(set(one.train["label"])) == 4
    for split, again in ((one.train, other.train), (one.test, other.test)):
        np.testing.assert_array_equal(split["label"], again["label"])
        np.testing.assert_array_equal(split["image"][:, 0], 2 * split["label"])
    with pytest.raises(DataError, match="D: expected at least 11 training examples"):
        subset(source, 11)
    with pytest.raises(DataError, match="D: found 10 examples, expected 11"):
        subset(source, 4, 11).load()
