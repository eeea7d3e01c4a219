"""A UDP socket that sends and receives many datagrams a call where the system can.

Linux cuts one large buffer into datagrams of equal size (UDP_SEGMENT), and joins those that arrive
together (UDP_GRO); elsewhere there is a call for each datagram.
"""

import contextlib
import socket
import struct
import time
from collections.abc import Iterator

import numpy as np

Address = tuple[str, int]

_SOL_UDP, _UDP_SEGMENT, _UDP_GRO = 17, 103, 104
_MOST_SEGMENTS, _MOST_BYTES = 44, 65_000
_BUFFER_BYTES = 32 << 20
_PATIENCE_SECONDS = 0.05
"""How long to wait for a datagram at a time."""
_LE = 1
"""The code point of lower-effort traffic, RFC 8622."""


class DatagramSocket:
    """A bound UDP socket.

    Attributes:
        address: where it is bound.
    """

    def __init__(self, address: Address, *, offload: bool = True, lower_effort: bool = False):
        """Binds it.

        Args:
            address: host and port of this worker; port 0 for any that is free.
            offload: whether to use UDP_SEGMENT and UDP_GRO where there are any.
            lower_effort: whether routers may drop its datagrams before all others (DSCP 1).

        Raises:
            OSError: the address is taken, or none of this host's.
        """
        family, _, _, _, resolved = socket.getaddrinfo(*address, type=socket.SOCK_DGRAM)[0]
        self._socket = socket.socket(family, socket.SOCK_DGRAM)
        try:
            self._socket.bind(resolved)
        except OSError:
            self._socket.close()
            raise
        self._socket.settimeout(_PATIENCE_SECONDS)
        for option in ("SO_RCVBUFFORCE", "SO_RCVBUF"):  # The first needs a privilege.
            with contextlib.suppress(OSError):
                number = 33 if option == "SO_RCVBUFFORCE" else socket.SO_RCVBUF
                self._socket.setsockopt(socket.SOL_SOCKET, number, _BUFFER_BYTES)
                break
        if lower_effort:
            six = family == socket.AF_INET6
            level = socket.IPPROTO_IPV6 if six else socket.IPPROTO_IP
            option_name = socket.IPV6_TCLASS if six else socket.IP_TOS
            self._socket.setsockopt(level, option_name, _LE << 2)
        self._segments = offload and self._try_offload()
        self._buffer = memoryview(bytearray(1 << 16))
        self.address: Address = self._socket.getsockname()[:2]

    def _try_offload(self) -> bool:
        try:
            self._socket.setsockopt(_SOL_UDP, _UDP_GRO, 1)
        except OSError:
            return False
        return True

    def send(self, datagrams: np.ndarray, address: Address) -> None:
        """Sends datagrams of one size; what the system has no room for is dropped.

        Args:
            datagrams: uint8 `[count, size]`, contiguous.
            address: of the destination.
        """
        count, size = datagrams.shape
        step = max(1, min(_MOST_SEGMENTS, _MOST_BYTES // size)) if self._segments else 1
        for start in range(0, count, step):
            part = datagrams[start : start + step]
            control = [(_SOL_UDP, _UDP_SEGMENT, struct.pack("H", size))] if len(part) > 1 else []
            # A full queue, a peer that is not there yet: all that is a drop.
            with contextlib.suppress(OSError):
                self._socket.sendmsg([part.data], control, 0, address)

    def receive(self) -> Iterator[memoryview]:
        """Yields the datagrams that one call receives; none if there is none for a while."""
        try:
            size, control, _, _ = self._socket.recvmsg_into([self._buffer], socket.CMSG_SPACE(4))
        except TimeoutError:
            return
        except OSError:  # A peer's port is closed, an interface is down: that is dropped datagrams.
            time.sleep(_PATIENCE_SECONDS)
            return
        segment = size
        for level, kind, data in control:
            if (level, kind) == (_SOL_UDP, _UDP_GRO):
                (segment,) = struct.unpack("i", data[:4])
        for start in range(0, size, max(segment, 1)):
            yield self._buffer[start : min(start + segment, size)]

    def close(self) -> None:
        """Gives the port back."""
        self._socket.close()
