"""Whether a folder can be written, and that one process alone does."""

import contextlib
import fcntl
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

from launch.cli.command_line import expect, refuse

LOCK_FILE = "writer.lock"


@contextlib.contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Holds a folder, which is made if need be, for this process alone.

    Relies on POSIX record locks: the kernel drops them with the process, however that ends, and
    NFS (version 4, or 3 with lockd), Lustre (mounted with `flock`), GPFS and CephFS honour them
    between hosts. The file stays: whoever deleted it could delete one that another has just locked.

    Raises:
        UsageError: Another process holds it, or it cannot be locked.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK_FILE).open("a+")
    except OSError as error:
        refuse("output_dir", folder, f"a folder that can be written ({error.strerror})")
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.seek(0)
            other = " ".join(file.read(200).split()) or "another process"
            refuse("output_dir", folder, f"a folder with one writer, found {other} writing there")
        except OSError as error:
            refuse("output_dir", folder, f"a file system that locks files ({error.strerror})")
        file.truncate(0)
        file.write(f"process {os.getpid()} of {socket.gethostname()}\n")
        file.flush()
        yield


def check_can_record(path: Path) -> None:
    """Raises `UsageError` if no trace can be written to the path of `--record`."""
    check_can_write("record", path.parent)
    if not os.path.exists(path):
        check_can_write("record", path)  # Its name, too.
    expect("record", path, not os.path.isdir(path), "a file, found a folder")


def check_can_write(name: str, folder: Path) -> None:
    """Raises `UsageError` for the flag `name` if nothing can be written to its folder.

    Found out by writing, under a name of its own: permissions do not tell of a read-only or special
    file system, and processes of one job that do the same must not meet.
    """
    path = folder.absolute()
    # A link that leads nowhere is there, too, and no folder can take its name.
    parent = next(p for p in (path, *path.parents) if os.path.lexists(p))
    try:
        with tempfile.TemporaryDirectory(dir=parent) as trial:
            (Path(trial) / path.relative_to(parent)).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        refuse(name, folder, f"a folder that can be written ({error.strerror})")
