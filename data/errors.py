"""The one error that unusable input ends in."""

import contextlib
from collections.abc import Iterator


class DataError(ValueError):
    """Input data that cannot be used.

    The message is one line: the file (and the line or record in it, counted from 1), what was
    found there, and what was expected.
    """


@contextlib.contextmanager
def os_errors_as_data_errors() -> Iterator[None]:
    """Turns what the operating system refuses (permission, I/O) into a `DataError`."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{error.filename}: found it unreadable ({error.strerror}), expected data"
        ) from error
