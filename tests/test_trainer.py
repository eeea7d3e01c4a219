"""Parts of the trainer, each by itself."""

import dataclasses

import numpy as np
import pytest

import rps_jax as rps
from launch.config import PRESETS
from launch.tasks.source import find_source
from launch.trainer.metrics import Window
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


def test_runs_that_differ_in_seed_or_drop_rate_share_their_programs(tmp_path) -> None:
    base = dataclasses.replace(PRESETS["linear"], num_workers=4, epochs=1)
    source = find_source(base)
    first, other, larger = (
        set_up(dataclasses.replace(base, **changes), source, tmp_path)
        for changes in ({}, {"seed": 1, "drop_rate": 0.5}, {"learning_rate": 0.3})
    )
    assert first.train_step is other.train_step is not larger.train_step
    assert first.evaluator is other.evaluator
    assert isinstance(other.channel, rps.Bernoulli)
    assert float(other.channel.drop_rate) == 0.5
    skewed = set_up(dataclasses.replace(base, label_skew=0.5), source, tmp_path)
    for setup in (first, other, skewed):  # Their shares have other shapes.
        order = setup.train_step.order(setup.data_key, setup.train.arrays, 0)
        signals = setup.mesh.put(np.zeros(4, np.int32))
        arguments = setup.channel, setup.initial, setup.train.arrays, order, signals
        setup.train_step.compile(*arguments)
        _, metrics, _ = setup.train_step(*arguments)
        assert np.isfinite(metrics.loss)
    assert not np.array_equal(first.initial.key, other.initial.key)
