"""A flag that names a file: hosts may have it in different places, so its digest counts."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

from launch.cli.command_line import refuse


def with_digest(name: str, flags: Any) -> Any:
    """Returns flags with the digest of a file, in the field that is named for it.

    Args:
        name: Field of the flag; that of the digest ends with `_sha256` in addition.
        flags: Those of the run; None for the file if it is not given.
    """
    path = getattr(flags, name)
    if path is None:
        return flags
    return dataclasses.replace(flags, **{f"{name}_sha256": digest_of_file(name, path)})


def digest_of_file(name: str, path: Path) -> str:
    """Returns the SHA-256 of a file, as hexadecimal digits.

    Args:
        name: Field of the flag.
        path: Its value.

    Raises:
        UsageError: The file cannot be read.
    """
    try:
        with path.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        refuse(name, path, f"a file that can be read ({error.strerror})")
