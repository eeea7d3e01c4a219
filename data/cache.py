"""A folder of prepared data that any number of processes may read, build and replace at once."""

import contextlib
import fcntl
import hashlib
import os
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np

from data.errors import DataError

T = TypeVar("T")


class CacheMiss(Exception):
    """A cached folder is absent or damaged; the message says what is wrong with it."""


def cache_dir() -> Path:
    """Returns `$XDG_CACHE_HOME/rps-jax`, or `~/.cache/rps-jax` where that is not set."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rps-jax"


def fingerprint(files: Iterable[str | os.PathLike[str]]) -> str:
    """Returns a key that changes with the place, size or time of any of the files."""
    digest = hashlib.sha256()
    for file in files:
        stat = os.stat(file)
        line = f"{os.path.abspath(file)}\0{stat.st_size}\0{stat.st_mtime_ns}\0"
        digest.update(os.fsencode(line))
    return digest.hexdigest()[:32]


def cached(name: str, *, build: Callable[[Path], None], read: Callable[[Path], T]) -> T:
    """Returns `read(folder)` of the cached folder `name`, building it where needed.

    Where the cache cannot be written (read-only, full, over quota), it warns and builds in a
    temporary folder, which is gone after `read`: memory maps made there stay valid.

    Args:
        name: Name of the folder inside `cache_dir()`. It must identify the contents: a key of
            the source files belongs in it.
        build: Writes the data into the folder that it is given, which does not exist yet.
        read: Reads the data from a folder that was built; raises `CacheMiss` if it cannot.

    Raises:
        DataError: `read` cannot read what `build` has just built; it is not kept.
    """
    final = cache_dir() / name
    try:
        return read(final)
    except CacheMiss:
        pass
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        with (
            _my_turn(final.parent),
            tempfile.TemporaryDirectory(prefix=".building-", dir=final.parent) as private,
        ):
            with contextlib.suppress(CacheMiss):
                return read(final)  # Another process has built it meanwhile.
            build(Path(private) / name)
            _read_back(read, Path(private) / name)
            _publish(Path(private) / name, final, read)
            return _read_back(read, final)
    except OSError as error:
        warnings.warn(
            f"{final}: prepared data cannot be kept here ({error.strerror or error}); "
            "it will be prepared again next time",
            stacklevel=2,
        )
    with tempfile.TemporaryDirectory(prefix="rps-jax-") as private:
        build(Path(private) / name)
        return _read_back(read, Path(private) / name)


def _read_back(read: Callable[[Path], T], built: Path) -> T:
    """Reads what has just been built."""
    try:
        return read(built)
    except CacheMiss as error:
        raise DataError(
            f"{built.name}: found that what was just prepared cannot be read ({error}), "
            "expected prepared data"
        ) from error


@contextlib.contextmanager
def _my_turn(folder: Path) -> Iterator[None]:
    """Waits while another process of this host builds here: it may do the same work."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # Not every file system has locks.
            fcntl.flock(opened, fcntl.LOCK_EX)
        yield
    finally:
        os.close(opened)


def _publish(built: Path, final: Path, read: Callable[[Path], object]) -> None:
    """Renames `built` to `final`, unless another process was faster."""
    try:
        built.rename(final)
        return
    except OSError:
        if not final.exists():
            raise
    try:
        read(final)
    except CacheMiss:
        # A damaged folder goes into the private one, and away with it.
        final.rename(built.with_name("damaged"))
        built.rename(final)


def write_arrays(folder: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes one `.npy` file per array into a new folder."""
    folder.mkdir(parents=True)
    for key, array in arrays.items():
        with open(folder / f"{key}.npy", "wb") as file:
            np.save(file, array)
            # The rename that publishes the folder must not reach the disk before its contents.
            file.flush()
            os.fsync(file.fileno())


def read_arrays(folder: Path, lengths: dict[str, int]) -> dict[str, np.ndarray]:
    """Maps the arrays that `write_arrays` wrote, without reading them.

    Args:
        folder: The folder.
        lengths: The keys to read, and the number of rows that each must have.

    Raises:
        CacheMiss: A file is absent, cut short, or of another length.
    """
    arrays = {}
    for key, length in lengths.items():
        file = folder / f"{key}.npy"
        try:
            arrays[key] = np.load(file, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise CacheMiss(f"{file}: {error}") from error
        if len(arrays[key]) != length:
            raise CacheMiss(f"{file}: found {len(arrays[key])} rows, expected {length}")
    return arrays
