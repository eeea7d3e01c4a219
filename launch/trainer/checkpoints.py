"""Checkpoints that are whole or not used: orbax writes them, a manifest vouches for them.

Orbax makes a checkpoint appear under its name only when it is complete. What it cannot see is a
file that was damaged later; so beside each checkpoint lies the SHA-256 of each of its files. It is
written before the checkpoint appears: one that has appeared is never without.

All processes of a job save and restore, each its own workers' part, in a folder that all can see.
Process 0 alone decides which checkpoint is used, and tidies up.
"""

import contextlib
import hashlib
import io
import logging
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from launch.cli.command_line import CommandError
from launch.json_objects import DamagedError, read_object, write_json

_MANIFEST = "manifest.json"
_UNFINISHED = "orbax-checkpoint-tmp"
"""Part of the names that orbax gives to what it has not finished."""

_STAMPS = ("_CHECKPOINT_METADATA", "commit_success.txt")
"""What orbax notes in the folder after the manifest is written; nothing is restored from it."""

# What orbax's threads fail with is raised as well, and they may say it when all is over.
_SAID_TWICE = ("_SignalingThread", "exception calling callback", "Task exception", "Task was")
for _logger in ("absl", "asyncio", "concurrent.futures"):
    logging.getLogger(_logger).addFilter(
        lambda record: not any(said in record.getMessage() for said in _SAID_TWICE)
    )


class CheckpointError(CommandError):
    """A checkpoint that cannot be written, or is whole but of another run."""


class Saved(NamedTuple):
    """A checkpoint that is whole.

    Attributes:
        step: Steps taken when it was saved.
        progress: The JSON values that were saved beside the state.
    """

    step: int
    progress: dict[str, Any]


class _WithManifest(ocp.CompositeCheckpointHandler):
    """Writes the manifest when all files are there, which orbax then moves to their name at once.

    Attributes:
        manifest: Path of the manifest of the checkpoint that is being saved.
    """

    manifest: Path

    def finalize(self, directory: Any) -> None:
        super().finalize(directory)  # On process 0 only.
        write_json(self.manifest, _digests(Path(directory)))


@ocp.args.register_with_handler(_WithManifest, for_save=True, for_restore=True)
class _Items(ocp.args.Composite):
    """What orbax wants beside a handler: the class of what it is given."""


class Checkpoints:
    """The checkpoints of one run, newest `keep` of them."""

    def __init__(
        self,
        directory: Path,
        keep: int = 3,
        holds: Callable[[dict[str, Any]], bool] = lambda progress: True,
    ) -> None:
        """Opens a folder of checkpoints, which need not exist yet.

        Args:
            directory: Where they are.
            keep: How many to keep.
            holds: Whether the JSON values of a checkpoint are such as this run saves; one with
                others is damaged.
        """
        self._directory = directory.absolute()
        self._keep = keep
        self._holds = holds
        self._handler = _WithManifest()
        self._checkpointer = ocp.Checkpointer(self._handler)

    def save(self, step: int, state: Any, progress: dict[str, Any]) -> Path:
        """Saves a checkpoint, then deletes those that are too old, and those of later steps.

        It is whole when any process returns. A run that has later ones has gone back since.

        Args:
            step: Steps taken.
            state: Any pytree of arrays.
            progress: JSON values.

        Returns:
            The folder of the checkpoint.

        Raises:
            CheckpointError: It cannot be written; the earlier ones are as they were.
        """
        path = self._write(step, state, progress)
        steps = self.steps()
        kept = [other for other in steps if other <= step][-self._keep :]
        self._delete([other for other in steps if other not in kept])
        return path

    def save_alone(self, step: int, state: Any, progress: dict[str, Any]) -> None:
        """Saves a checkpoint that takes the place of all others; otherwise as `save`.

        The others are deleted when it is whole, the newest of them last.
        """
        self._write(step, state, progress)
        self._delete([other for other in self.steps() if other != step])

    def _write(self, step: int, state: Any, progress: dict[str, Any]) -> Path:
        path = self._directory / str(step)
        items = _Items(state=ocp.args.StandardSave(state), progress=ocp.args.JsonSave(progress))
        self._handler.manifest = self._manifest_of(step)
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # Tracebacks of threads that failed.
                try:
                    self._checkpointer.save(path, items, force=True)
                except Exception:
                    _ignore_other_threads()  # Before stderr is shown again.
                    raise
        except jax.errors.JaxRuntimeError:
            raise  # Another process has gone; nothing is wrong with the disk.
        # What a disk that is full or gone raises depends on which library has met it.
        except Exception as error:
            raise CheckpointError(
                f"{path}: the checkpoint cannot be written ({_in_short(error)})"
            ) from error
        return path

    def _delete(self, steps: list[int]) -> None:
        if jax.process_index() == 0:
            for step in steps:
                _remove(self._directory / str(step))
                _remove(self._manifest_of(step))

    def steps(self) -> list[int]:
        """Returns the steps of all checkpoints there are, damaged ones too, oldest first."""
        if not self._directory.is_dir():
            return []
        return sorted(
            int(entry.name)
            for entry in self._directory.iterdir()
            if entry.name.isdecimal() and entry.name == str(int(entry.name))
        )

    def newest(self, report: Callable[[str], None]) -> Saved | None:
        """Returns the newest checkpoint that is whole, None if there is none.

        Args:
            report: Told, in one line each, of checkpoints that are damaged, which are set aside as
                `STEP.damaged`, or half-written, which are deleted.
        """
        step = self._newest_whole(report) if jax.process_index() == 0 else None
        if jax.process_count() > 1:
            told = multihost_utils.broadcast_one_to_all(np.int32(-1 if step is None else step))
            step = int(told) if told >= 0 else None
        if step is None:
            return None
        return Saved(step, self._progress(step))

    def restore(self, step: int, like: Any) -> Any:
        """Returns the state of a checkpoint.

        Args:
            step: Step of the checkpoint, from `newest`.
            like: A pytree of arrays with the shapes, dtypes and shardings to restore; of NumPy
                arrays for the whole state, in NumPy arrays on every process.

        Raises:
            CheckpointError: The checkpoint does not hold a pytree like this one.
        """
        abstract = jax.tree.map(
            lambda leaf: (
                leaf if isinstance(leaf, np.ndarray) else ocp.utils.to_shape_dtype_struct(leaf)
            ),
            like,
        )
        try:
            path = self._directory / str(step)
            return self._checkpointer.restore(
                path, _Items(state=ocp.args.StandardRestore(abstract))
            ).state
        # Orbax tells of other shapes and other trees in several ways.
        except Exception as error:
            raise CheckpointError(
                f"{self._directory / str(step)}: the checkpoint does not fit this run "
                f"({_in_short(error)}): expected one that this version has written"
            ) from error

    def _newest_whole(self, report: Callable[[str], None]) -> int | None:
        if self._directory.is_dir():
            for entry in sorted(self._directory.iterdir()):
                if _UNFINISHED in entry.name:
                    report(f"{entry.name} was only half written, and is not used")
                    _remove(entry)
        for step in reversed(self.steps()):
            damage = self._damage(step)
            if damage is None:
                return step
            report(f"the checkpoint of step {step} is damaged ({damage}), and is not used")
            aside = self._directory / f"{step}.damaged"
            _remove(aside)
            (self._directory / str(step)).rename(aside)
            _remove(self._manifest_of(step))
        return None

    def _progress(self, step: int) -> dict[str, Any]:
        """Reads the JSON values from orbax's file: restoring them takes all processes."""
        return read_object(self._directory / str(step) / "progress" / "metadata", self._holds)

    def _manifest_of(self, step: int) -> Path:
        return self._directory / f"{step}.{_MANIFEST}"

    def _damage(self, step: int) -> str | None:
        """Returns what is wrong with a checkpoint, None if nothing is."""
        path, manifest = self._directory / str(step), self._manifest_of(step)
        try:
            expected = read_object(manifest, lambda values: True)
        except DamagedError as error:
            return f"{manifest.name}: {error}"
        for stamp in _STAMPS:
            expected.pop(stamp, None)  # Earlier versions wrote the manifest last.
        try:
            found = _digests(path)
        except OSError as error:
            return f"{error.filename}: {error.strerror}"
        for name in sorted(expected.keys() | found.keys()):
            if name not in found:
                return f"{name} is missing"
            if expected.get(name) != found[name]:
                return f"{name} has changed"
        if not found:
            return "it is empty"
        try:
            self._progress(step)
        except DamagedError as error:
            return f"progress: {error}"
        return None


def _ignore_other_threads() -> None:
    """Keeps from stderr what the writes that orbax has given up yet fail with.

    They end later, in threads of tensorstore, and nobody can catch what they raise. Threads of
    Python have a hook of their own.
    """
    print_error = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        if threading.current_thread() is threading.main_thread():
            print_error(kind, error, trace)

    sys.excepthook = hook
    sys.unraisablehook = lambda unraisable: None


def _remove(path: Path) -> None:
    """Removes a file, a link or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _in_short(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0][:200].rstrip(":") if lines else type(error).__name__


def _digests(path: Path) -> dict[str, str]:
    """Returns the SHA-256 of every file below a folder but the stamps, by relative path."""
    digests = {}
    for file in sorted(path.rglob("*")):
        if file.is_file() and file.relative_to(path).as_posix() not in _STAMPS:
            with file.open("rb") as opened:
                digest = hashlib.file_digest(opened, "sha256").hexdigest()
            digests[file.relative_to(path).as_posix()] = digest
    return digests
