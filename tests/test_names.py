"""Names of hosts that are known late, change, or that nobody knows: where datagrams go."""

import contextlib
import socket
import threading

import numpy as np
import pytest

from rps_jax.transport import names
from rps_jax.transport.sockets import DatagramSocket

DATAGRAMS = np.arange(400, dtype=np.uint8).reshape(4, 100)


@pytest.fixture
def known(monkeypatch):
    """The hosts that are known, by name; what is not among them is looked up as ever."""
    hosts, ask = {}, socket.getaddrinfo

    def look_up(host, port, **options):
        numbers = hosts.get(host, [host])
        if not numbers or (options.get("flags") and host in hosts):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [found for each in numbers for found in ask(each, port, **options)]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr(names, "_ASK_AGAIN_SECONDS", 0.01)
    monkeypatch.setattr(names, "_LOOK_AGAIN_SECONDS", 0.01)
    return hosts


@contextlib.contextmanager
def opened(*arguments, **options):
    made = DatagramSocket(*arguments, **options)
    yield made
    made.close()


def receiver(place, family=socket.AF_INET):
    made = socket.socket(family, socket.SOCK_DGRAM)
    made.bind(place)
    made.settimeout(0.02)
    return made


def sent_until_it_comes(sender, address, receiver):
    """What comes first of datagrams that are sent again and again, as exchanges do."""
    for _ in range(500):
        sender.send(DATAGRAMS, address)
        with contextlib.suppress(TimeoutError):
            return receiver.recv(1000)
    raise AssertionError("nothing has come")


def test_a_host_binds_what_others_reach_who_are_not_known_yet(known):
    known |= {"first": ["127.0.1.1"], "second": [], "both": ["::1", "127.0.0.1"]}
    for own, others, expected in (
        ("first", [], "127.0.1.1"),
        ("first", [("second", 4100)], "0.0.0.0"),
        ("first", [("127.0.0.1", 4100), ("second", 4100)], "0.0.0.0"),
        ("both", [("second", 4100)], "::"),
        ("both", [("127.0.0.1", 4100), ("second", 4100)], "0.0.0.0"),
        ("both", [("127.0.0.1", 4100)], "127.0.0.1"),
        ("both", [("first", 4100), ("::1", 4100)], None),
    ):
        if expected is None:
            with pytest.raises(OSError, match="no family of addresses"), opened((own, 0), others):
                pass
        else:
            with opened((own, 0), others) as made:
                assert made.address[0] == expected


@pytest.mark.parametrize("own", ["127.0.1.1", "::1 127.0.0.1"])
@pytest.mark.parametrize("offload", [True, False])
def test_a_name_may_be_known_late_and_change(known, own, offload):
    known |= {"first": own.split(), "second": []}
    with receiver(("127.0.0.2", 0)) as before:
        there = "second", before.getsockname()[1]
        with opened(("first", 0), [there], offload=offload, lower_effort=True) as sender:
            sender.send(DATAGRAMS, there)
            assert sender.bytes_sent == 0
            known["second"] = ["127.0.0.2"]
            assert sent_until_it_comes(sender, there, before) == DATAGRAMS[0].tobytes()
            with receiver(("127.0.0.3", there[1])) as after:
                known["second"] = ["127.0.0.3"]
                assert sent_until_it_comes(sender, there, after) == DATAGRAMS[0].tobytes()
            # Where nobody knows it any more, it is where it was.
            known["second"] = []
            with receiver(("127.0.0.3", there[1])) as after:
                assert sent_until_it_comes(sender, there, after) == DATAGRAMS[0].tobytes()
            assert sender.path_mtu is None


@pytest.mark.parametrize(
    ("own", "others", "to"),
    [("first", [], "127.0.0.1"), ("::1", [], "::1"), ("both", ["second"], "127.0.0.1")],
)
@pytest.mark.parametrize("lower_effort", [False, True])
def test_lower_effort_is_said_in_every_family(known, own, others, to, lower_effort):
    known |= {"first": ["127.0.1.1"], "both": ["::1", "127.0.0.1"], "second": []}
    is_6 = ":" in to
    with receiver((to, 0), socket.AF_INET6 if is_6 else socket.AF_INET) as there:
        if is_6:
            there.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVTCLASS, 1)
        else:
            there.setsockopt(socket.IPPROTO_IP, socket.IP_RECVTOS, 1)
        there.settimeout(5.0)
        places = [(other, 4100) for other in others]
        with opened((own, 0), places, lower_effort=lower_effort) as sender:
            sender.send(DATAGRAMS, (to, there.getsockname()[1]))
        _, [(_, _, said)], _, _ = there.recvmsg(1000, 1000)
        assert said[0] >> 2 == lower_effort  # Of RFC 8622, the code point is 1.


def test_who_sends_does_not_wait_for_names(known, monkeypatch):
    known["second"] = []
    with opened(("127.0.0.1", 0), [("second", 4100)]) as sender:
        ask, asked, by = socket.getaddrinfo, threading.Event(), []

        def look_up(*arguments, **options):
            by.append(threading.current_thread())
            asked.set()
            return ask(*arguments, **options)

        monkeypatch.setattr(socket, "getaddrinfo", look_up)
        while not asked.wait(1e-3):
            sender.send(DATAGRAMS, ("second", 4100))
        sender.send(DATAGRAMS, ("second", 4100))
    assert threading.current_thread() not in by
    assert all(thread.daemon for thread in by)  # None keeps a process from its end.


def test_numbers_are_not_looked_up_again():
    before = set(threading.enumerate())  # Those of other tests may end meanwhile.
    with opened(("127.0.0.1", 0), [("127.0.0.1", 4100), ("127.0.0.2", 4100)]):
        assert before.issuperset(threading.enumerate())
