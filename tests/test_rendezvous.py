"""Where processes meet before JAX is started."""

import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from launch.distributed import rendezvous as module
from launch.distributed.ports import free_port
from launch.distributed.rendezvous import RendezvousError, rendezvous, split_address


def meet(*calls: tuple[int, int], timeout: float = 20.0) -> list[str]:
    """Runs a rendezvous of `(num_processes, process_id)`; returns what each got, "" for yes."""
    coordinator = f"127.0.0.1:{free_port()}"
    told = ["never returned"] * len(calls)

    def call(place: int, num_processes: int, process_id: int) -> None:
        try:
            rendezvous(coordinator, num_processes, process_id, timeout, gloo=True)
            told[place] = ""
        except RendezvousError as error:
            told[place] = str(error).replace(coordinator, "HOST:PORT")

    threads = [threading.Thread(target=call, args=(place, *who)) for place, who in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return told


def test_all_processes_meet_and_the_port_is_free_again() -> None:
    port = free_port()
    threads = [
        threading.Thread(
            target=rendezvous, args=(f"localhost:{port}", 3, i, 20.0), kwargs={"gloo": True}
        )
        for i in (2, 0, 1)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    socket.create_server(("", port)).close()


def test_whoever_is_missing_is_named() -> None:
    expected = "processes 1, 3 of 4 have not come to HOST:PORT within 2 s"
    assert meet((4, 0), (4, 2), timeout=2.0) == [expected] * 2


def test_a_number_that_comes_twice_is_refused() -> None:
    for told in meet((3, 0), (3, 1), (3, 1)):
        assert told.startswith("--process-id 1: expected one process of this number")


def test_another_number_of_processes_is_refused() -> None:
    for told in meet((2, 0), (3, 1)):
        assert told.startswith("--num-processes 3 of process 1 on ")
        assert "expected 2, as process 0" in told


def test_a_coordinator_that_is_not_there_is_named() -> None:
    (told,) = meet((2, 1), timeout=1.0)
    assert told.startswith("--coordinator HOST:PORT: expected process 0 there, found none in 1 s")
    assert "Connection refused" in told


def test_a_host_that_is_not_there_is_named() -> None:
    with pytest.raises(RendezvousError, match=r"absent.invalid:1: expected process 0"):
        rendezvous("absent.invalid:1", 2, 1, 1.0, gloo=True)


@pytest.mark.parametrize(
    ("says", "told"),
    [
        (b"220 ready\r\n", "what answers is no process of this job"),
        (b'{"hello": "rps-jax rendezvous"}\n', r"process 0 at .* has gone while it waited for"),
    ],
)
def test_something_else_at_the_coordinators_address_is_named(says: bytes, told: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        other.settimeout(10)

        def greet() -> None:
            while True:
                try:
                    with other.accept()[0] as caller, caller.makefile("rb") as heard:
                        heard.readline()
                        caller.sendall(says)
                except OSError:
                    return

        thread = threading.Thread(target=greet)
        thread.start()
        with pytest.raises(RendezvousError, match=told):
            rendezvous(address, 2, 1, 1.0, gloo=True)
        other.shutdown(socket.SHUT_RDWR)  # Wakes the thread, as close does not.
        thread.join()


def test_a_port_that_is_taken_is_named() -> None:
    with socket.create_server(("", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(RendezvousError, match=r"expected a free port of this host.*in use"):
            rendezvous(f"127.0.0.1:{port}", 2, 0, 1.0, gloo=True)


@pytest.mark.parametrize(
    "says", [b"", b"{}\n", b"[]\n", b"\xff\n", b"[" * 20_000 + b"\n", b'{"hello": "world"}\n']
)
def test_a_stranger_at_the_port_does_not_count(
    says: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PATIENCE", 3.0 if says else 0.2)
    listening = threading.Event()
    listen = socket.create_server

    def listen_and_tell(*address: Any, **options: Any) -> socket.socket:
        listener = listen(*address, **options)
        listening.set()
        return listener

    monkeypatch.setattr(socket, "create_server", listen_and_tell)
    port = free_port()
    with ThreadPoolExecutor() as pool:
        answered = pool.submit(_call, port, 0)
        assert listening.wait(20.0)
        with socket.create_connection(("127.0.0.1", port), timeout=5.0) as stranger:
            stranger.sendall(says)
            assert stranger.recv(1) == b""
            _call(port, 1)
            answered.result()


def _call(port: int, process_id: int) -> None:
    rendezvous(f"127.0.0.1:{port}", 2, process_id, 20.0, gloo=True)


def test_a_call_that_reaches_the_caller_itself_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """TCP connects a socket to itself where the port that it was given is the one it calls."""
    with socket.socket() as own:
        own.bind(("127.0.0.1", 0))
        port = own.getsockname()[1]
        own.connect(("127.0.0.1", port))
        monkeypatch.setattr(socket, "create_connection", lambda *_, **__: own)
        with pytest.raises(RendezvousError, match=r"found none in 0\.1 s"):
            rendezvous(f"127.0.0.1:{port}", 2, 1, 0.1, gloo=True)


@pytest.mark.parametrize(
    ("hosts", "addresses", "refused"),
    [
        (("a", "a"), ("127.0.1.1", "127.0.1.1"), None),
        (("a", "b"), ("10.0.0.1", "10.0.0.2"), None),
        (("a", "b"), ("10.0.0.1", "127.0.1.1"), "process 1: the name of host b resolves to 127"),
        (("a", "b"), (None, "10.0.0.2"), "process 0: the name of host a has no address there"),
    ],
)
def test_hosts_whose_names_lead_nowhere_are_refused(
    hosts: Any, addresses: Any, refused: str | None
) -> None:
    present = {
        i: {"host": host, "address": address, "gloo": True}
        for i, (host, address) in enumerate(zip(hosts, addresses, strict=True))
    }
    said = module._check_reachable(present)
    assert said is None if refused is None else said is not None and said.startswith(refused)


@pytest.mark.parametrize(
    "address",
    [
        "",
        "host",
        "host:",
        ":1",
        "host:0",
        "host:65536",
        "host:a",
        "a..b:5",
        f"{'a' * 70}:5",
        "a b:5",
    ],
)
def test_an_address_that_is_none(address: str) -> None:
    with pytest.raises(ValueError, match="expected HOST:PORT"):
        split_address(address)


def test_addresses() -> None:
    assert split_address("a.b:1") == ("a.b", 1)
    assert split_address("[::1]:65535") == ("::1", 65535)
