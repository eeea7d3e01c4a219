"""The cache of decoded data, with several processes at it."""

import os
import threading
import warnings

import numpy as np
import pytest

from data import DataError
from data.cache import CacheMiss, cache_dir, cached, fingerprint, read_arrays, write_arrays


@pytest.fixture(autouse=True)
def _private_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


ARRAYS = {"a": np.arange(6).reshape(3, 2), "b": np.zeros((2, 0), np.uint8)}


def load(builds):
    """Loads ARRAYS through the cache; appends to `builds` when they are built."""

    def build(folder):
        builds.append(folder)
        write_arrays(folder, ARRAYS)

    arrays = cached("arrays", build=build, read=lambda f: read_arrays(f, {"a": 3, "b": 2}))
    for key, array in ARRAYS.items():
        np.testing.assert_array_equal(arrays[key], array)
        assert isinstance(arrays["a"], np.memmap)


def test_builds_once_and_leaves_nothing_else_behind():
    builds = []
    load(builds)
    load(builds)
    assert len(builds) == 1
    assert os.listdir(cache_dir()) == ["arrays"]


def test_who_comes_while_another_builds_waits_and_reads():
    builds, second = [], threading.Thread(target=lambda: load(builds))

    def build(folder):
        builds.append(folder)
        second.start()
        second.join(timeout=0.2)
        assert second.is_alive()
        write_arrays(folder, ARRAYS)

    cached("arrays", build=build, read=lambda f: read_arrays(f, {"a": 3, "b": 2}))
    second.join()
    assert len(builds) == 1


@pytest.mark.parametrize("damage", ["truncated", "emptied", "removed", "other length", "garbage"])
def test_a_damaged_folder_is_built_again(damage):
    builds = []
    load(builds)
    file = cache_dir() / "arrays" / "a.npy"
    content = file.read_bytes()
    match damage:
        case "truncated":
            file.write_bytes(content[:-1])
        case "emptied":
            file.write_bytes(b"")
        case "removed":
            file.unlink()
        case "other length":
            np.save(file, np.arange(4))
        case "garbage":
            file.write_bytes(b"garbage" + content)
    load(builds)
    load(builds)
    assert len(builds) == 2
    assert os.listdir(cache_dir()) == ["arrays"]


def test_the_faster_of_two_processes_wins():
    final = cache_dir() / "arrays"

    def build(folder):
        write_arrays(folder, {"a": np.arange(3)})
        # Meanwhile, elsewhere:
        write_arrays(final, {"a": np.arange(3, 6)})

    arrays = cached("arrays", build=build, read=lambda f: read_arrays(f, {"a": 3}))
    np.testing.assert_array_equal(arrays["a"], np.arange(3, 6))
    assert os.listdir(cache_dir()) == ["arrays"]


def test_a_build_that_fails_leaves_nothing_behind():
    def build(folder):
        folder.mkdir()
        raise ValueError("no data")

    with pytest.raises(ValueError, match="no data"):
        cached("arrays", build=build, read=lambda f: read_arrays(f, {"a": 3}))
    assert os.listdir(cache_dir()) == []


@pytest.mark.parametrize("writable", [True, False])
def test_what_cannot_be_read_back_is_an_error_and_not_kept(writable, tmp_path):
    if not writable:
        (tmp_path / "cache").write_text("a file where the folder would be")
    with (
        warnings.catch_warnings(action="ignore"),
        pytest.raises(DataError, match=r"^arrays: found .*found 3 rows, expected 4") as error,
    ):
        cached(
            "arrays",
            build=lambda folder: write_arrays(folder, ARRAYS),
            read=lambda folder: read_arrays(folder, {"a": 4}),
        )
    assert "\n" not in str(error.value)
    assert not writable or os.listdir(cache_dir()) == []


def test_without_a_writable_cache_it_warns_and_works(tmp_path):
    (tmp_path / "cache").write_text("a file where the folder would be")
    builds = []
    with pytest.warns(UserWarning, match="cannot be kept here"):
        load(builds)
    assert len(builds) == 1


def test_a_miss_names_the_file(tmp_path):
    with pytest.raises(CacheMiss, match=r"absent/a\.npy"):
        read_arrays(tmp_path / "absent", {"a": 3})


def test_fingerprint_sees_place_size_and_time(tmp_path):
    file = tmp_path / "file"
    file.write_text("one")
    first = fingerprint([file])
    assert fingerprint([file]) == first
    os.utime(file, ns=(0, 1))
    second = fingerprint([file])
    file.write_text("three")
    os.utime(file, ns=(0, 1))
    third = fingerprint([file])
    moved = file.rename(tmp_path / "moved")
    assert len({first, second, third, fingerprint([moved])}) == 4
