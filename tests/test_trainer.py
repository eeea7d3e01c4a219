"""Parts of the trainer, each by itself."""

import dataclasses
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import rps_jax as rps
from launch.comparison import report
from launch.comparison.grid import Setting
from launch.config import PRESETS, TrainConfig
from launch.reports.progress import Progress
from launch.reports.results import print_summary
from launch.tasks.source import find_source
from launch.trainer.optimizer import make_optimizer
from launch.trainer.recorder import Window
from launch.trainer.resume import is_progress, progress_of
from launch.trainer.schedule import Schedule
from launch.trainer.setup import set_up


def test_lines_and_checkpoints_are_due_when_the_flags_say() -> None:
    schedule = Schedule(epochs=3, steps_per_epoch=4, log_every=3, checkpoint_every=2)
    places = [schedule.after(step) for step in range(1, schedule.total_steps + 1)]
    assert [at.step for at in places if at.logs] == [3, 4, 7, 8, 11, 12]
    assert [at.step for at in places if at.epoch_ends] == [4, 8, 12]
    assert [at.step for at in places if at.saves] == [8, 12]
    assert [at.step for at in places if at.last] == [12]
    assert places[5].epoch == 1.5


def test_what_is_no_training_does_not_count_in_the_throughput() -> None:
    now = [0.0]
    window = Window([[9.0, 0.5]], clock=lambda: now[0])
    now[0] = 60.0  # Compiling.
    window.restart_clock()
    for _ in range(4):
        now[0] += 0.5
        window.add(1.0, 1.0)
    averages = window.averages(examples_per_step=32)
    assert averages["examples_per_second"] == 64.0
    assert averages["train_loss"] == pytest.approx((9 + 4) / 5)
    assert averages["delivered_fraction"] == pytest.approx(4.5 / 5)
    assert "exchange_seconds" not in averages


def test_the_seconds_of_exchanges_are_averaged_where_there_are_any() -> None:
    window = Window([[9.0, 0.5, 0.25]])
    window.add(1.0, 1.0, 0.75)
    assert window.averages(examples_per_step=32)["exchange_seconds"] == 0.5


def test_where_nothing_is_exchanged_the_last_known_fraction_holds() -> None:
    for before in (1.0, 0.25):
        window = Window([[9.0, None]], {"delivered_fraction": before})
        assert window.averages(examples_per_step=32)["delivered_fraction"] == before
        window.add(1.0, 0.75)
        assert window.averages(examples_per_step=32)["delivered_fraction"] == 0.75


@pytest.mark.parametrize(("sent", "shown"), [(0, False), (8, True)])
def test_what_arrives_is_shown_where_something_was_sent(sent, shown, capsys) -> None:
    line = {"epoch": 1.0, "train_loss": 2.0, "delivered_fraction": 1.0, "examples_per_second": 9.0}
    line |= {"bytes_sent_per_worker": sent, "s": 0.5}
    Progress(Schedule(2, 3, 1, 1), "s", 0).show(line)
    said = capsys.readouterr().out
    assert ("delivered 100%" in said) == shown
    assert said.endswith(" test 0.5000\n")
    summary = line | {"score": "s", "s": 1.0, "worst_worker_s": 1.0, "best_worker_s": 1.0}
    summary |= {"mean_model_train_loss": 2.0, "consensus_distance": 0.0, "wall_seconds": 1.0}
    print_summary(summary, Path("run"))
    assert ("delivered  100.0%" in capsys.readouterr().out) == shown
    result = report.Result(Setting((), TrainConfig()), [[line], [line]])
    assert report._delivered(result) == [1.0, 1.0] * shown


def test_runs_that_differ_in_numbers_alone_share_their_programs(tmp_path) -> None:
    base = dataclasses.replace(PRESETS["linear"], num_workers=4, epochs=1)
    source = find_source(base)
    first, other, heavier = (
        set_up(dataclasses.replace(base, **changes), source, tmp_path)
        for changes in (
            {},
            {"seed": 1, "drop_rate": 0.5, "learning_rate": 0.3, "epochs": 2},
            {"momentum": 0.5},
        )
    )
    assert first.train_step is other.train_step is not heavier.train_step
    assert first.evaluator is other.evaluator
    assert isinstance(other.run.channel, rps.Bernoulli)
    assert float(other.run.channel.drop_rate) == 0.5
    assert float(other.run.learning_rate) == np.float32(0.3)
    assert int(other.run.total_steps) == 2 * int(first.run.total_steps)
    skewed = set_up(dataclasses.replace(base, label_skew=0.5), source, tmp_path)
    for setup in (first, other, skewed):  # Their shares have other shapes.
        order = setup.train_step.order(setup.data_key, setup.train.arrays, 0)
        signals = setup.network.mesh.put(np.zeros(4, np.int32))
        arguments = setup.run, setup.initial, setup.train.arrays, order, signals
        setup.train_step.compile(*arguments)
        _, metrics, _ = setup.train_step(*arguments)
        assert np.isfinite(metrics.loss)
    assert not np.array_equal(first.initial.key, other.initial.key)


def test_whoever_exchanges_nothing_sends_no_bytes(tmp_path) -> None:
    for algorithm, sends in (("rps", True), ("local", False)):
        config = dataclasses.replace(PRESETS["linear"], num_workers=2, algorithm=algorithm)
        setup = set_up(config, find_source(config), tmp_path)
        assert (setup.exchange_bytes > 0) == sends


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [("constant", (1, 1, 1, 1)), ("cosine", (1, 0.5, 0.25, 0)), ("step", (1, 0.1, 0.1, 0.01))],
)
def test_the_learning_rate_follows_the_run(schedule, expected) -> None:
    config = dataclasses.replace(PRESETS["linear"], schedule=schedule, momentum=0.0)
    optimizer = make_optimizer(config, 0.5, 12)
    state = optimizer.init(jnp.float32(0))
    rates = []
    for _ in range(13):
        update, state = optimizer.update(jnp.float32(1), state)
        rates.append(-float(update) / 0.5)
    np.testing.assert_allclose([rates[0], rates[6], rates[8], rates[12]], expected, atol=1e-6)


PROGRESS = {"num_workers": 4, "steps_per_epoch": 5, "window": [[1.0, None], [1.0, 0.5, 2.0]]} | {
    "wall_seconds": 1.0,
    "averages": {"train_loss": 1.0, "delivered_fraction": 0.5},
    "data_digest": "00000000",
    "deciding": {},
}


@pytest.mark.parametrize(
    "damage",
    [{name: None} for name in PROGRESS]
    + [{"num_workers": 0}, {"steps_per_epoch": 0}, {"averages": {"train_loss": 1.0, "x": "1"}}]
    + [{"window": [[1.0, None], step]} for step in (5, [1.0], [1.0, "1"], [None, 1.0])]
    + [{"window": [[1.0, 0.5, None]]}, {"window": [[1.0] * 4]}],
)
def test_progress_that_no_run_saves_is_none(damage) -> None:
    assert is_progress(PROGRESS)
    assert not is_progress(PROGRESS | damage)


def test_a_checkpoint_holds_progress(tmp_path) -> None:
    config = PRESETS["linear"]
    setup = set_up(config, find_source(config), tmp_path)
    progress = progress_of(setup, PROGRESS["window"], 1.0, PROGRESS["averages"])
    assert progress.keys() == PROGRESS.keys()
    assert is_progress(progress)
