"""Checkpoints: what is kept, what is restored, and what is refused."""

import gc
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

import launch.trainer.checkpoints
import rps_jax as rps
from launch.trainer import checkpoints as module
from launch.trainer.checkpoints import CheckpointError, Checkpoints

MESH = rps.worker_mesh(4)


class State(NamedTuple):
    """Every kind of leaf and of container that a training state may have."""

    step: jax.Array
    key: jax.Array
    params: dict[str, Any]
    model_state: dict[str, Any]
    opt_state: Any
    channel_state: Any


def state(value: int = 0) -> State:
    params = {
        "dense": {"kernel": jnp.full((3, 5), value / 3), "scale": jnp.float32(value)},
        "half": jnp.arange(7, dtype=jnp.bfloat16) + value,
    }
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1))
    shared = State(
        step=jnp.int32(value),
        key=jnp.array([value, 2**32 - 1], jnp.uint32),
        params=params,
        model_state={},
        opt_state=optimizer.init(params),
        channel_state=(),
    )
    by_worker: State = MESH.replicate(shared)
    return by_worker._replace(key=MESH.put(np.arange(8, dtype=np.uint32).reshape(4, 2)))


def assert_same(left: Any, right: Any) -> None:
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert a.dtype == b.dtype
        assert a.sharding == b.sharding
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def no_report(text: str) -> None:
    raise AssertionError(text)


def test_what_was_saved_is_restored_bit_for_bit(tmp_path: Path) -> None:
    saved, progress = state(3), {"window": [[0.1, 1 / 3]], "none": None}
    Checkpoints(tmp_path / "new").save(12, saved, progress)
    reopened = Checkpoints(tmp_path / "new")
    assert reopened.newest(no_report) == (12, progress)
    assert_same(reopened.restore(12, state()), saved)


def test_the_whole_state_can_be_restored_on_the_host(tmp_path: Path) -> None:
    saved = state(3)
    Checkpoints(tmp_path).save(12, saved, {})
    like = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), saved)
    restored = Checkpoints(tmp_path).restore(12, like)
    for leaf, wanted in zip(jax.tree.leaves(restored), jax.tree.leaves(saved), strict=True):
        assert isinstance(leaf, np.ndarray)
        np.testing.assert_array_equal(leaf, np.asarray(wanted))


def test_where_there_is_none_none_is_restored(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path).newest(no_report) is None
    assert Checkpoints(tmp_path / "absent").newest(no_report) is None
    assert not (tmp_path / "absent").exists()


def test_the_newest_few_are_kept_and_of_a_run_that_has_gone_back_none_of_later_steps(
    tmp_path: Path,
) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step, kept in ((2, [2]), (8, [2, 8]), (10, [8, 10]), (9, [8, 9])):
        checkpoints.save(step, state(step), {})
        assert checkpoints.steps() == kept
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "8",
        "8.manifest.json",
        "9",
        "9.manifest.json",
    ]


@pytest.mark.parametrize("step", [3, 12])
def test_one_that_takes_the_place_of_all_others_leaves_no_moment_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for older in (9, 10):
        checkpoints.save(older, state(), {})
    there, before = [], launch.trainer.checkpoints._remove

    def remove(path: Path) -> None:
        there.append(checkpoints.steps())
        before(path)

    monkeypatch.setattr(launch.trainer.checkpoints, "_remove", remove)
    checkpoints.save_alone(step, state(3), {"of": step})
    assert there
    assert all(step in steps for steps in there)
    assert there[-1] == [step]
    assert Checkpoints(tmp_path).newest(no_report) == (step, {"of": step})


def largest_file(folder: Path) -> Path:
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def truncate(folder: Path) -> None:
    file = largest_file(folder)
    file.write_bytes(file.read_bytes()[:-1])


def flip_a_byte(folder: Path) -> None:
    file = largest_file(folder)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def remove_a_file(folder: Path) -> None:
    largest_file(folder).unlink()


def add_a_file(folder: Path) -> None:
    (folder / "more").write_text("")


def remove_the_manifest(folder: Path) -> None:
    folder.with_name(f"{folder.name}.manifest.json").unlink()


def cut_the_manifest(folder: Path) -> None:
    manifest = folder.with_name(f"{folder.name}.manifest.json")
    manifest.write_text(manifest.read_text()[:-5])


def leave_half_written(folder: Path) -> None:
    """Turns the checkpoint into what orbax leaves behind when it is killed."""
    folder.rename(folder.with_name(f"{folder.name}.orbax-checkpoint-tmp"))
    remove_the_manifest(folder)


@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        flip_a_byte,
        remove_a_file,
        add_a_file,
        remove_the_manifest,
        cut_the_manifest,
        leave_half_written,
    ],
)
def test_a_damaged_newest_one_is_reported_and_the_one_before_is_used(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(5, state(5), {"of": 5})
    damage(checkpoints.save(6, state(6), {"of": 6}))
    reports: list[str] = []
    assert Checkpoints(tmp_path).newest(reports.append) == (5, {"of": 5})
    assert_same(Checkpoints(tmp_path).restore(5, state()), state(5))
    (report,) = reports
    assert "6" in report
    assert "\n" not in report

    # The damaged one is out of the way of the one that the run now writes.
    checkpoints.save(6, state(6), {"of": 6})
    assert Checkpoints(tmp_path).newest(no_report) == (6, {"of": 6})


def test_when_all_are_damaged_none_is_restored(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    for step in (5, 6):
        flip_a_byte(checkpoints.save(step, state(step), {}))
    reports: list[str] = []
    assert checkpoints.newest(reports.append) is None
    assert len(reports) == 2
    assert checkpoints.steps() == []


# Orbax forgets its coroutines when a restore fails.
@pytest.mark.filterwarnings("ignore:coroutine:RuntimeWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_whole_one_that_does_not_fit_is_an_error_and_is_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(5, state(5), {})
    other = state()._replace(params={"dense": jnp.zeros((4, 2))})
    with pytest.raises(CheckpointError, match="5: the checkpoint does not fit this run") as error:
        checkpoints.restore(5, other)
    assert "\n" not in str(error.value)
    del error
    gc.collect()
    assert checkpoints.newest(no_report) is not None


def test_one_that_takes_the_place_of_all_others(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    for step in (4, 5, 8):
        checkpoints.save(step, state(step), {})
    checkpoints.save_alone(6, state(6), {})
    assert checkpoints.steps() == [6]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["6", "6.manifest.json"]


@pytest.mark.parametrize("fails", ["orbax", "the manifest"])
def test_a_save_that_fails_is_an_error_and_leaves_the_earlier_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(5, state(5), {})

    def full(*args: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        if fails == "orbax":
            patch.setattr(ocp.Checkpointer, "save", full)
        else:
            patch.setattr(os, "replace", full)
        with pytest.raises(
            CheckpointError, match=r"6: the checkpoint cannot be written .*No space"
        ):
            checkpoints.save(6, state(6), {})
    reports: list[str] = []
    assert checkpoints.newest(reports.append) == (5, {})


def test_a_process_that_has_gone_is_no_error_of_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*args: object, **options: object) -> None:
        raise jax.errors.JaxRuntimeError("process 1 has gone")

    monkeypatch.setattr(ocp.Checkpointer, "save", gone)
    with pytest.raises(jax.errors.JaxRuntimeError, match="process 1 has gone"):
        Checkpoints(tmp_path).save(6, state(6), {})


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be written") as error:
        Checkpoints(tmp_path / "file" / "checkpoints").save(1, state(), {})
    assert "\n" not in str(error.value)


class Killed(BaseException):
    """What no handler of errors takes for one."""


@pytest.mark.parametrize(("appeared", "newest"), [(False, 5), (True, 6)])
def test_one_that_was_killed_around_its_appearance_is_whole_or_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, appeared: bool, newest: int
) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(5, state(5), {})
    of, name = (ocp.Checkpointer, "save") if appeared else (module, "write_json")
    finishes = getattr(of, name)

    def finish_and_die(*args: Any, **options: Any) -> None:
        finishes(*args, **options)
        raise Killed

    monkeypatch.setattr(of, name, finish_and_die)
    with pytest.raises(Killed):
        checkpoints.save(6, state(6), {})
    assert Checkpoints(tmp_path).newest(lambda text: None) == (newest, {})


@pytest.mark.parametrize("manifest", ["[]", "null", "5", "{}", "[" * 100_000, '{"a": 5}'])
def test_a_manifest_that_is_none_is_damage(tmp_path: Path, manifest: str) -> None:
    checkpoints = Checkpoints(tmp_path)
    for step in (5, 6):
        checkpoints.save(step, state(step), {})
    (tmp_path / "6.manifest.json").write_text(manifest)
    reports: list[str] = []
    assert checkpoints.newest(reports.append) == (5, {})
    assert len(reports) == 1


def test_progress_that_this_run_would_not_save_is_damage(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, holds=lambda values: values.get("of") == 5)
    for step in (5, 6):
        checkpoints.save(step, state(step), {"of": step})
    reports: list[str] = []
    assert checkpoints.newest(reports.append) == (5, {"of": 5})
    assert len(reports) == 1


def test_the_clock_does_not_say_which_checkpoint_is_newest(tmp_path: Path) -> None:
    """A clock that was set back makes later files look older."""
    checkpoints = Checkpoints(tmp_path)
    for step in (5, 6):
        checkpoints.save(step, state(step), {})
        for path in (tmp_path, *tmp_path.rglob("*")):
            os.utime(path, (1e9 - step, 1e9 - step))
    assert Checkpoints(tmp_path).newest(print) == (6, {})
    restored = checkpoints.restore(6, state(0))
    for found, saved in zip(jax.tree.leaves(restored), jax.tree.leaves(state(6)), strict=True):
        np.testing.assert_array_equal(found, saved)
