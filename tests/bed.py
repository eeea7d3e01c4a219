"""A bed for the tests: real links between network namespaces, where they can be made."""

import contextlib
from collections.abc import Iterator

import pytest

from launch.bed import Bed, Link, missing


@contextlib.contextmanager
def bed_or_skip(num_hosts: int, link: Link) -> Iterator[Bed]:
    """Yields a bed; skips the test where the machine lacks what it needs."""
    if reason := missing():
        pytest.skip(f"network namespaces cannot be made: {reason}")
    with contextlib.ExitStack() as stack:
        try:
            bed = stack.enter_context(Bed(num_hosts, link))
        except OSError as error:
            pytest.skip(str(error))
        yield bed
