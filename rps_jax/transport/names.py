"""Where the others are: the numbers of their names, which may be known late, and may change."""

import socket
import threading
from collections.abc import Sequence
from typing import Any

Address = tuple[str, int]
Ends = dict[int, Any]
"""An address as numbers by family, in the order in which the system prefers them."""
_ASK_AGAIN_SECONDS, _LOOK_AGAIN_SECONDS = 5.0, 60.0
"""Until a name that nobody knows is looked up again, and one that is known."""


class Names:
    """The addresses of others as numbers; names are looked up again and again, in the background.

    A name that nobody knows may take seconds each time, so that each has a thread of its own.
    """

    def __init__(self, addresses: Sequence[Address]) -> None:
        """Looks them all up, once."""
        self._ends: dict[Address, Ends] = {}
        self._closed = threading.Event()
        for address in addresses:
            self._add(address)

    def __getitem__(self, address: Address) -> Ends:
        """Returns an address as numbers, none of a name that nobody knows (yet)."""
        if address not in self._ends:
            self._add(address)
        return self._ends[address]

    def _add(self, address: Address) -> None:
        self._ends[address] = look_up(address, socket.AI_NUMERICHOST)
        if not self._ends[address]:
            self._ends[address] = look_up(address)
            threading.Thread(target=self._follow, args=(address,), daemon=True).start()

    def _follow(self, address: Address) -> None:
        while not self._closed.wait(
            _LOOK_AGAIN_SECONDS if self._ends[address] else _ASK_AGAIN_SECONDS
        ):
            # Who answers for a while no more does not know of another place.
            self._ends[address] = look_up(address) or self._ends[address]

    def close(self) -> None:
        """Looks nothing up any more."""
        self._closed.set()


def look_up(address: Address, flags: int = 0) -> Ends:
    """Returns an address as numbers, none for a name that nobody knows (yet)."""
    try:
        found = socket.getaddrinfo(*address, type=socket.SOCK_DGRAM, flags=flags)
    except OSError:
        return {}
    ends: Ends = {}
    for family, _, _, _, resolved in found:
        ends.setdefault(family, resolved)
    return ends
