"""What a socket sends and receives, joined by the system or one by one."""

import errno
import socket
import sys
import time

import numpy as np
import pytest
from datagrams import KEY, addresses, sealed

from rps_jax.transport.packets import Sealer
from rps_jax.transport.sockets import DatagramSocket


def test_a_host_that_knows_itself_as_loopback_is_reached_by_others():
    port = addresses(1)[0][1]
    for others, expected in (
        ([("127.0.0.1", 4000)], "127.0.0.1"),
        ([("127.0.0.1", 4000), ("192.0.2.1", 4000)], "0.0.0.0"),
        ([("nobody.invalid", 4000)], "0.0.0.0"),
    ):
        bound = DatagramSocket(("127.0.0.1", port), others)
        bound.close()
        assert bound.address == (expected, port)
    with pytest.raises(OSError, match="no family of addresses"):
        DatagramSocket(("127.0.0.1", port), [("::1", 4000)])


@pytest.mark.parametrize("error", [errno.EIO, errno.EINVAL])
def test_datagrams_go_one_by_one_where_the_system_takes_none_joined(error):
    class WithoutJoined:
        """As Linux, where the way goes by IPsec."""

        def __init__(self, inner):
            self._inner, self.refused = inner, 0

        def sendmsg(self, buffers, control, *arguments):
            if control:
                self.refused += 1
                raise OSError(error, "not joined")
            return self._inner.sendmsg(buffers, control, *arguments)

        def __getattr__(self, name):
            return getattr(self._inner, name)

    sender, receiver = (DatagramSocket(("127.0.0.1", 0)) for _ in range(2))
    sender._socket = WithoutJoined(sender._socket)
    for _ in range(2):
        sender.send(np.zeros((5, 1200), np.uint8), receiver.address)
    assert sender._socket.refused == (sys.platform == "linux")  # It is not tried again.
    assert sender.bytes_sent == 10 * 1200
    assert sum(len(datagrams) for datagrams, _ in receiver.receive()) == 10
    assert sender.path_mtu is None  # Of the loopback, 65,536 bytes.
    sender.close()
    receiver.close()


@pytest.mark.parametrize("offload", [True, False])
def test_datagrams_are_told_when_they_came(offload):
    sender, receiver = (DatagramSocket(("127.0.0.1", 0), offload=offload) for _ in range(2))
    came, began = [], time.monotonic()
    for _ in range(3):
        sender.send(np.zeros((2, 60), np.uint8), receiver.address)
        came.extend(each for _, seconds in receiver.receive() for each in seconds)
    elapsed = time.monotonic() - began
    sender.close()
    receiver.close()
    assert len(came) == 6
    assert came == sorted(came)
    assert 0 < came[-1] - came[0] < 2 * elapsed


@pytest.mark.parametrize("offload", [True, False])
def test_foreign_datagrams_do_not_part_those_of_the_run(offload):
    sealer, foreign = Sealer(7, KEY), Sealer(8, KEY)
    receiver = DatagramSocket(("127.0.0.1", 0), wanted=sealer.is_of_run, offload=offload)
    with socket.socket(type=socket.SOCK_DGRAM) as attacker:
        sender = DatagramSocket(("127.0.0.1", 0))
        for place in range(4):
            for datagram in (b"", b"RP", b"\0" * 90, sealed(foreign)[0].tobytes()):
                attacker.sendto(datagram, receiver.address)
            rows = np.full((3, 30), place, np.uint8)
            genuine = sealer.seal(0, 0, 1, 0, rows, 3 * place)
            sender.send(genuine, receiver.address)
        sender.close()
    (genuine, _), (rest, _) = receiver.receive()
    (opened,), refused = sealer.open(genuine)
    assert refused == {"foreign": 3}  # Those of the same size, but for the first.
    assert opened.places.tolist() == list(range(12))
    assert opened.payloads[:, 0].tolist() == np.repeat(range(4), 3).tolist()
    assert sealer.open(rest) == ([], {"foreign": 13})
    receiver.close()
