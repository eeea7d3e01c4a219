"""A run that goes on with another number of workers."""

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from run_files import read_metrics, saved_state

import launch.train
import launch.trainer.setup
import launch.trainer.training
import rps_jax as rps
from launch.trainer.checkpoints import Checkpoints
from launch.trainer.resize import resized

SMALL = ("--preset", "linear", "--batch-size", "32", "--epochs", "3", "--checkpoint-every", "1")


def state_of_three() -> Any:
    params = {"w": jnp.arange(4.0), "count": jnp.int32(7)}
    optimizer = optax.chain(optax.trace(0.9), optax.scale_by_schedule(lambda step: -0.1 * step))
    one = rps.init_train_state(params, {}, optimizer, rps.Bernoulli(0.1), 3, seed=5)
    many = jax.tree.map(lambda leaf: np.stack([np.asarray(leaf)] * 3), one)
    offsets = np.array([0.0, 1.0, 5.0], np.float32)[:, None]
    return many._replace(params={**many.params, "w": many.params["w"] + offsets})


def test_workers_that_stay_keep_their_own_and_new_ones_get_the_mean() -> None:
    before = state_of_three()
    after = resized(before, range(5), 40)
    np.testing.assert_array_equal(after.params["w"][:3], before.params["w"])
    for worker in (3, 4):
        np.testing.assert_array_equal(after.params["w"][worker], before.params["w"].mean(0))
    # The mean model is where it was.
    np.testing.assert_allclose(after.params["w"].mean(0), before.params["w"].mean(0))
    np.testing.assert_array_equal(after.key, np.stack([before.key[0]] * 5))
    np.testing.assert_array_equal(after.params["count"], [7] * 5)
    for leaf, wanted in zip(jax.tree.leaves(after), jax.tree.leaves(before), strict=True):
        assert leaf.dtype == wanted.dtype


def test_steps_and_schedules_are_set_to_the_same_place_of_the_run() -> None:
    after = resized(state_of_three(), range(2), 40)
    np.testing.assert_array_equal(after.step, [40] * 2)
    trace, schedule = after.opt_state
    np.testing.assert_array_equal(schedule.count, [40] * 2)
    np.testing.assert_array_equal(trace.trace["count"], [0] * 2)


@pytest.mark.parametrize("every", [1, 3])
def test_updates_are_remembered_from_the_same_place_of_the_run(every: int) -> None:
    # Without a count where none is needed.
    optimizer = optax.chain(optax.trace(0.9), rps.remember_updates(every))
    one = rps.init_train_state({"w": jnp.arange(4.0)}, {}, optimizer, rps.Bernoulli(0.1), 2, seed=5)
    before = jax.tree.map(lambda leaf: np.stack([np.asarray(leaf)] * 2), one)
    after = resized(before, range(3), 40)
    assert jax.tree.structure(after) == jax.tree.structure(before)
    if every > 1:
        np.testing.assert_array_equal(after.opt_state[1].count, [40] * 3)


def test_a_process_asks_for_its_own_workers_alone() -> None:
    before = state_of_three()
    after = resized(before, range(2, 4), 0)
    np.testing.assert_array_equal(after.params["w"][0], before.params["w"][2])
    np.testing.assert_array_equal(after.params["w"][1], before.params["w"].mean(0))


@pytest.fixture(scope="module")
def run_of_four(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("four") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch.train, "start_devices", lambda *workers: None)
        argv = [*SMALL, "--num-workers", "4", "--output-dir", str(folder)]
        assert launch.train.main(argv) == 0
    # As if it had been stopped in the last epoch.
    shutil.rmtree(folder / "checkpoints" / "33")
    (folder / "summary.json").unlink()
    return folder


def first_leaf(folder: Path, step: int) -> np.ndarray:
    leaf: np.ndarray = jax.tree.leaves(saved_state(folder, step)["params"])[0]
    return leaf


@pytest.mark.long
@pytest.mark.parametrize(("workers", "resumed", "last"), [(6, 14, 21), (2, 44, 66)])
def test_a_run_goes_on_with_more_or_fewer_workers(
    run_of_four: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    workers: int,
    resumed: int,
    last: int,
) -> None:
    monkeypatch.setattr(launch.train, "start_devices", lambda *count: None)
    folder = tmp_path / "run"
    shutil.copytree(run_of_four, folder)
    of_four = first_leaf(folder, 22)
    argv = ["--resume", "--num-workers", str(workers), "--output-dir", str(folder)]

    assert launch.train.main(argv) == 2
    assert capsys.readouterr().err == (
        f"error: --num-workers {workers}: expected 4, as the run in {folder} has it "
        "(--allow-resize goes on with another number)\n"
    )

    assert launch.train.main([*argv, "--allow-resize"]) == 0
    said = capsys.readouterr().out
    assert f"{workers} workers go on with what 4 have learned in 2 epochs" in said
    assert f"resuming at step {resumed} of {last}" in said
    lines = read_metrics(folder)
    assert [line["epoch"] for line in lines if "test_loss" in line] == [1.0, 2.0, 3.0]
    # It goes on from what was learned: no worse than before by much, where the start was at 2.3.
    before, after = (line["mean_model_train_loss"] for line in lines[-2:])
    assert after < before + 0.2
    # From here on it is a run of the new number.
    assert json.loads((folder / "config.json").read_text())["num_workers"] == workers
    steps = sorted(int(p.name) for p in (folder / "checkpoints").iterdir() if p.name.isdigit())
    assert steps == [resumed, last]
    shared = min(workers, 4)
    np.testing.assert_array_equal(first_leaf(folder, resumed)[:shared], of_four[:shared])
    assert launch.train.main(["--resume", "--output-dir", str(folder)]) == 0


@pytest.mark.parametrize("workers", ["6", pytest.param("2", marks=pytest.mark.long)])
def test_a_run_that_is_done_is_not_resized(
    run_of_four: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    workers: str,
) -> None:
    monkeypatch.setattr(launch.train, "start_devices", lambda *count: None)
    folder = tmp_path / "run"
    shutil.copytree(run_of_four, folder)
    assert launch.train.main(["--resume", "--output-dir", str(folder)]) == 0
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    argv = ["--resume", "--allow-resize", "--num-workers", workers, "--output-dir", str(folder)]
    assert launch.train.main(argv) == 2
    assert capsys.readouterr().err == (
        f"error: --num-workers {workers}: expected 4, as the run in {folder} has it, "
        "which is done\n"
    )
    del before[folder / "writer.lock"]
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert {path.name for path in (folder / "checkpoints").iterdir()} >= {"11", "22", "33"}


def test_a_resize_is_only_for_a_run_that_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert launch.train.main(["--allow-resize"]) == 2
    assert "--allow-resize requires --resume" in capsys.readouterr().err


@pytest.mark.long
def test_a_resize_that_is_killed_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch.train, "start_devices", lambda *workers: None)
    folder = tmp_path / "run"
    # As many steps of four workers as of six.
    argv = ["--preset", "linear", "--batch-size", "200", "--epochs", "3", "--checkpoint-every", "1"]
    assert launch.train.main([*argv, "--num-workers", "4", "--output-dir", str(folder)]) == 0
    shutil.rmtree(folder / "checkpoints" / "3")
    resume = ["--resume", "--output-dir", str(folder)]
    larger = [*resume, "--allow-resize", "--num-workers", "6"]
    with monkeypatch.context() as killed:
        killed.setattr(launch.trainer.training, "train_loop", lambda *arguments: None)
        killed.setattr(launch.trainer.training, "summarise", lambda *arguments: None)
        launch.train.main(larger)
    saved = Checkpoints(folder / "checkpoints").newest(print)
    assert saved is not None
    assert (saved.step, saved.progress["num_workers"]) == (2, 4)
    assert launch.train.main(larger) == 0
    assert launch.train.main(resume) == 0
    saved = Checkpoints(folder / "checkpoints").newest(print)
    assert saved is not None
    assert (saved.step, saved.progress["num_workers"]) == (3, 6)


@pytest.mark.long
def test_another_number_of_workers_has_a_fresh_channel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A memory of links between so many workers says nothing of another number."""
    monkeypatch.setattr(launch.train, "start_devices", lambda *workers: None)
    bursts = rps.GilbertElliott(0.4, 3)
    monkeypatch.setattr(launch.trainer.setup, "make_channel", lambda config: bursts)
    folder = ["--output-dir", str(tmp_path / "run")]
    assert launch.train.main([*SMALL, "--num-workers", "4", *folder]) == 0
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "33")
    resume = ["--resume", "--allow-resize", "--num-workers", "6", "--epochs", "3", *folder]
    assert launch.train.main(resume) == 0
    (last,) = sorted((tmp_path / "run" / "checkpoints").glob("[0-9]*[0-9]"))[-1:]
    channel = saved_state(tmp_path / "run", int(last.name))["channel_state"]
    assert np.asarray(channel["begun"]).all()
    assert [np.shape(mask) for mask in jax.tree.leaves(channel["bad"])] == [(6, 6)] * 3
