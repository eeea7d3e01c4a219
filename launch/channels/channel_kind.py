"""What the commands know of a channel."""

from collections.abc import Callable
from typing import Any, NamedTuple

import rps_jax as rps


def _complete(flags: Any) -> Any:
    return flags


class ChannelKind(NamedTuple):
    """An entry of the registry of channels. Each function is given the flags of the whole run.

    Attributes:
        flags: A frozen dataclass, a field a flag. A flag of no other channel may not be given
            beside another channel.
        check: Raises `UsageError` for flags that do not fit together.
        make: `(flags, num_workers) -> channel`, in host memory. Raises `UsageError` for files that
            are not as expected.
        describe: What is dropped, for people, as in "10% of messages dropped".
        complete: Adds what is no flag but follows from one, such as the digest of a file.
    """

    flags: type
    check: Callable[[Any], None]
    make: Callable[[Any, int], rps.Channel]
    describe: Callable[[Any], str]
    complete: Callable[[Any], Any] = _complete
