"""A UDP socket that sends and receives many datagrams a call where the system can.

Linux cuts one large buffer into datagrams of equal size (UDP_SEGMENT), and joins those that arrive
together (UDP_GRO); elsewhere there is a call for each datagram.
"""

import contextlib
import errno
import ipaddress
import itertools
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from rps_jax.transport.names import Address, Ends, Names, look_up
from rps_jax.transport.packets import IP_AND_UDP_BYTES

MOST_SEGMENTS = 44
"""Datagrams that are sent at a time at the most."""
_MOST_CALLS = 44
"""Calls to receive at the most, before what they brought is looked at."""
_MOST_BYTES = 65_000
_SOL_UDP, _UDP_SEGMENT, _UDP_GRO = 17, 103, 104
_SO_TIMESTAMPNS = 35
_IP_MTU, _IPV6_MTU = 14, 24
_NOT_JOINED = (errno.EINVAL, errno.EMSGSIZE, errno.EIO)
"""What Linux says where datagrams are too large for the way to be joined, or it goes by IPsec."""
_CONTROL_BYTES = 128
_LINUX = sys.platform == "linux"
_BUFFER_BYTES = 32 << 20
_LARGEST_DATAGRAM = 1 << 16
_PATIENCE_SECONDS = 0.05
"""How long to wait for a datagram, or for room to send one, at a time."""
_LE = 1
"""The code point of lower-effort traffic, RFC 8622."""


_ANYWHERE: dict[int, str] = {socket.AF_INET: "0.0.0.0", socket.AF_INET6: "::"}
_IN_IPV6 = "::ffff:"
"""What an address of IPv4 begins with where a socket of IPv6 sends to it."""


class _Run(NamedTuple):
    """Datagrams of one size that came together."""

    datagrams: int
    size: int
    seconds: float


def _own_end(address: Address, others: Sequence[Ends]) -> tuple[int, Any]:
    """Returns the family of addresses that all have in common, and where to bind.

    Many hosts know their own name as a loopback address, from where no other host is reached:
    unless all others are known to be there too, that means all addresses of this host. Where the
    others may turn out to be of either family, it is all addresses of both.

    Raises:
        OSError: nobody knows the host, or there is no such family.
    """
    own = look_up(address)
    if not own:
        socket.getaddrinfo(*address, type=socket.SOCK_DGRAM)  # Says why.
    known = [ends for ends in others if ends]
    families = [family for family in own if all(family in ends for ends in known)]
    if not families:
        raise OSError(
            f"{address[0]} and the others have no family of addresses (IPv4, IPv6) in common"
        )
    all_known = len(known) == len(others)
    either = len(families) > 1 and not all_known
    family = socket.AF_INET6 if either else families[0]
    place = own[family]
    near = all_known and all(_is_loopback(ends[family]) for ends in known)
    if either or (_is_loopback(place) and not near):
        place = (_ANYWHERE[family], *place[1:])
    return family, place


def _is_loopback(resolved: Any) -> bool:
    return ipaddress.ip_address(resolved[0]).is_loopback


class DatagramSocket:
    """A bound UDP socket.

    Attributes:
        address: where it is bound.
        receive_buffer: bytes that the system grants for datagrams that wait to be received.
        drained: whether the last `receive` has left nothing there.
        path_mtu: bytes of the largest packet on the narrowest way to a destination, of those that
            are too narrow for what was sent; None while there are none.
    """

    def __init__(
        self,
        address: Address,
        others: Sequence[Address] = (),
        *,
        wanted: Callable[[memoryview], bool] = lambda datagram: True,
        offload: bool = True,
        lower_effort: bool = False,
    ):
        """Binds it.

        Args:
            address: host and port of this worker; port 0 for any that is free.
            others: those that it will send to; their names are looked up again and again.
            wanted: tells of a datagram whether those like it are received, or only counted.
            offload: whether to use UDP_SEGMENT and UDP_GRO where there are any.
            lower_effort: whether routers may drop its datagrams before all others (DSCP 1).

        Raises:
            OSError: the address is taken, or none of this host's.
        """
        with contextlib.ExitStack() as unless_bound:
            self._names = Names(others)
            unless_bound.callback(self._names.close)
            self._family, place = _own_end(address, [self._names[other] for other in others])
            self._both = place[0] == _ANYWHERE[socket.AF_INET6]
            # Of a socket that is connected, the system tells what its way carries.
            self._socket, self._probe = (
                unless_bound.enter_context(socket.socket(self._family, socket.SOCK_DGRAM))
                for _ in range(2)
            )
            if self._both:
                for each in (self._socket, self._probe):
                    each.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            self._socket.bind(place)
            unless_bound.pop_all()
        # The system's own time-outs: Python's cost a call more for each datagram.
        patience = struct.pack("@ll", 0, int(_PATIENCE_SECONDS * 1e6))
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            self._socket.setsockopt(socket.SOL_SOCKET, option, patience)
        options = [33] if _LINUX else []  # SO_RCVBUFFORCE, which needs a privilege.
        for option in (*options, socket.SO_RCVBUF):
            with contextlib.suppress(OSError):
                self._socket.setsockopt(socket.SOL_SOCKET, option, _BUFFER_BYTES)
                break
        self.receive_buffer = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        if lower_effort:
            if self._family == socket.AF_INET6:
                self._socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, _LE << 2)
            if self._family == socket.AF_INET or self._both:
                self._socket.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, _LE << 2)
        self._wanted = wanted
        self._offload = offload and _LINUX and self._try_offload()
        self.bytes_sent, self.drained = 0, True
        self.path_mtu: int | None = None
        self._one_by_one: set[Address] = set()
        self._buffer = np.empty(_MOST_CALLS * _LARGEST_DATAGRAM, np.uint8)
        self.address: Address = self._socket.getsockname()[:2]

    def _try_offload(self) -> bool:
        try:
            self._socket.setsockopt(_SOL_UDP, _UDP_GRO, 1)
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        except OSError:
            return False
        return True

    def send(self, datagrams: np.ndarray, address: Address) -> None:
        """Sends datagrams of one size; what the system has no room for is dropped.

        So is what is for a name that nobody knows (yet).

        Args:
            datagrams: uint8 `[count, size]`, contiguous.
            address: of the destination.
        """
        resolved = self._numbers(address)
        if resolved is None:
            return
        count, size = datagrams.shape
        joined = self._offload and address not in self._one_by_one
        step = max(1, min(MOST_SEGMENTS, _MOST_BYTES // size)) if joined else 1
        for start in range(0, count, step):
            part = datagrams[start : start + step]
            control = [(_SOL_UDP, _UDP_SEGMENT, struct.pack("H", size))] if len(part) > 1 else []
            try:
                self.bytes_sent += self._socket.sendmsg([part.data], control, 0, resolved)
            except OSError as error:
                # A full queue, a peer that is not there yet: all that is a drop. But what the way
                # there does not take joined has to be sent one by one: the system cuts datagrams
                # that are too large for it then, and none otherwise.
                if control and error.errno in _NOT_JOINED:
                    self._one_by_one.add(address)
                    self._note_mtu(resolved, size)
                    self.send(datagrams[start:], address)
                    return

    def _note_mtu(self, resolved: Any, size: int) -> None:
        """Takes note of what the way to a destination carries, if that is less than a datagram."""
        mapped = resolved[0].startswith(_IN_IPV6)
        headers = IP_AND_UDP_BYTES[socket.AF_INET if mapped else self._family]
        with contextlib.suppress(OSError):
            self._probe.connect(resolved)
            if self._family == socket.AF_INET6:
                mtu = self._probe.getsockopt(socket.IPPROTO_IPV6, _IPV6_MTU)
            else:
                mtu = self._probe.getsockopt(socket.IPPROTO_IP, _IP_MTU)
            if mtu < size + headers:
                self.path_mtu = min(mtu, self.path_mtu or mtu)

    def _numbers(self, address: Address) -> Any:
        """Returns where to send to, None where there is nowhere."""
        for family, numbers in self._names[address].items():
            if family == self._family:
                return numbers
            if self._both:
                return (_IN_IPV6 + numbers[0], numbers[1])
        return None

    def receive(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields what has come, all that is there: datagrams of one size at a time.

        Yields:
            uint8 `[count, size]`, valid until the next receive, and when each came, `[count]`, in
            seconds on a clock of its own. Those that are not wanted come last, as of no size.
        """
        end = 0
        for size, runs in itertools.groupby(self._receive_runs(), key=lambda run: run.size):
            counts, seconds = zip(*((run.datagrams, run.seconds) for run in runs), strict=True)
            begin, end = end, end + sum(counts) * size
            datagrams = self._buffer[begin:end].reshape(sum(counts), size)
            yield datagrams, np.repeat(seconds, counts)

    def _receive_runs(self) -> list[_Run]:
        """Receives into the buffer what is there, after waiting for the first."""
        receive = self._receive_joined if self._offload else self._receive_one
        runs: list[_Run] = []
        end, unwanted, self.drained = 0, 0, True
        for call in range(_MOST_CALLS):
            try:
                found = receive(end, socket.MSG_DONTWAIT if call else 0)
            except BlockingIOError:
                break
            except OSError:
                # A peer's port is closed, an interface is down: that is dropped datagrams.
                if not runs:
                    time.sleep(_PATIENCE_SECONDS)
                break
            size = found[0].size
            # Of one size they are all looked at together later; others would part them.
            parts = not runs or size != runs[-1].size
            if parts and not self._wanted(self._buffer.data[end : end + size]):
                unwanted += sum(run.datagrams for run in found)
                continue
            runs += found
            end += sum(run.datagrams * run.size for run in found)
        else:
            self.drained = False
        return runs + [_Run(unwanted, 0, 0.0)] * (unwanted > 0)

    def _receive_joined(self, start: int, flags: int) -> list[_Run]:
        """Receives datagrams that the system has joined."""
        place = [self._buffer.data[start : start + _LARGEST_DATAGRAM]]
        size, control, _, _ = self._socket.recvmsg_into(place, _CONTROL_BYTES, flags)
        segment, seconds = size, 0.0
        for level, kind, data in control:
            if (level, kind) == (_SOL_UDP, _UDP_GRO):
                (segment,) = struct.unpack("@i", data[:4])
            elif (level, kind) == (socket.SOL_SOCKET, _SO_TIMESTAMPNS):
                whole, nanoseconds = struct.unpack("@ll", data[:16])
                seconds = whole + 1e-9 * nanoseconds
        count, rest = divmod(size, segment) if segment else (0, 0)
        runs = [_Run(count, segment, seconds)] * (count > 0)
        return runs + [_Run(1, rest, seconds)] * (rest > 0 or not size)

    def _receive_one(self, start: int, flags: int) -> list[_Run]:
        """Receives one datagram."""
        size = self._socket.recv_into(self._buffer.data[start:], _LARGEST_DATAGRAM, flags)
        return [_Run(1, size, time.monotonic())]

    def close(self) -> None:
        """Gives the port back, and the memory."""
        self._names.close()
        self._socket.close()
        self._probe.close()
        self._buffer = np.empty(0, np.uint8)
