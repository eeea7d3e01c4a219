"""A flag that names a file: hosts may have it in different places, so its digest counts."""

import hashlib
from pathlib import Path

from launch.cli.command_line import refuse


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
