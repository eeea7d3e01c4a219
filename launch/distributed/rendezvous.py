"""All processes of a job meet at the coordinator's address before JAX does.

JAX waits for the processes of a job in compiled code, and where one never comes it ends the others
with a stack trace that names none. So they meet here first, on the same port: whoever is missing,
comes twice, or cannot be reached by the others is named in one line.
"""

import contextlib
import errno
import ipaddress
import json
import os
import re
import socket
import time
from typing import Any

from launch.cli.command_line import CommandError, refuse
from launch.json_objects import DamagedError, parse_object

_HELLO = "rps-jax rendezvous"
_LONGEST = 1 << 16
"""Most bytes of a message; what sends more is no process of a job."""
_PATIENCE = 3.0
"""Seconds in which whoever has called must have said who it is."""


class RendezvousError(CommandError):
    """The processes of a job have not come together; the message says which, and why."""


def rendezvous(
    coordinator: str, num_processes: int, process_id: int, timeout: float, *, gloo: bool
) -> None:
    """Returns once all processes are there.

    Args:
        coordinator: `HOST:PORT` of process 0. The port is free again afterwards.
        num_processes: How many processes the job has.
        process_id: Number of this process.
        timeout: Seconds to wait for the others.
        gloo: Whether JAX's CPU collectives are to carry the messages.

    Raises:
        RendezvousError: They are not all there in time, or cannot work together.
    """
    host, port = split_address(coordinator)
    deadline = time.monotonic() + timeout
    me = {
        "hello": _HELLO,
        "process_id": process_id,
        "num_processes": num_processes,
        "host": socket.gethostname(),
        "gloo": gloo,
        "address": own_address(),
    }
    if process_id == 0:
        refusal = _call(coordinator, port, me, deadline, timeout)
    else:
        refusal = _answer(coordinator, host, port, me, deadline, timeout)
    if refusal:
        raise RendezvousError(refusal)


def split_address(address: str) -> tuple[str, int]:
    """Returns host and port of `HOST:PORT`; the host of IPv6 may stand in brackets.

    Raises:
        ValueError: It is no such address.
    """
    found = re.fullmatch(r"(?:\[([^\[\]\s]+)\]|([^\[\]\s]+)):([0-9]{1,5})", address)
    if found is None or not 0 < int(found[3]) < 65536:
        raise ValueError(f"{address}: expected HOST:PORT")
    host = found[1] or found[2]
    try:
        host.encode("idna")  # As the socket module will.
    except UnicodeError as error:
        raise ValueError(f"{address}: expected HOST:PORT ({error})") from None
    return host, int(found[3])


def address_of_flag(name: str, text: str) -> tuple[str, int]:
    """Returns host and port of a flag's value; raises `UsageError` if it is no address."""
    try:
        return split_address(text)
    except ValueError:
        refuse(name, text, "HOST:PORT")


def own_address() -> str | None:
    """Returns the address of this host's own name, None if it has none."""
    try:
        return socket.gethostbyname(socket.gethostname())
    except OSError:
        return None


def unreachable(host: str, address: str | None) -> str | None:
    """Returns why other hosts cannot reach the CPU collectives of a host, None if they can.

    Args:
        host: Name of the host, as it calls itself.
        address: Address of that name on that host.
    """
    if address is not None and not ipaddress.ip_address(address).is_loopback:
        return None
    found = f"resolves to {address}" if address else "has no address"
    return (
        f"the name of host {host} {found} there, and JAX's CPU collectives (Gloo) listen at the "
        f"address of that name, where other hosts cannot reach it; expected {host} with its own "
        "address in its /etc/hosts"
    )


def _call(
    coordinator: str, port: int, me: dict[str, Any], deadline: float, timeout: float
) -> str | None:
    """Takes the roll as process 0; tells all others whether the job is complete."""
    try:
        listener = _listen(port)
    except OSError as error:
        raise RendezvousError(
            f"--coordinator {coordinator}: expected a free port of this host, {me['host']} "
            f"({os.strerror(error.errno) if error.errno else error})"
        ) from error
    present: dict[int, dict[str, Any]] = {0: me}
    with contextlib.ExitStack() as opened:
        opened.enter_context(listener)
        callers: list[socket.socket] = []
        refusal = None
        while refusal is None and len(present) < me["num_processes"]:
            listener.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                caller = opened.enter_context(listener.accept()[0])
            except TimeoutError:
                refusal = _missing(coordinator, present, me["num_processes"], timeout)
                break
            said = _receive(caller, min(deadline, time.monotonic() + _PATIENCE))
            if said is None:
                caller.close()  # A port scan, or a process that has died or has to call again.
                continue
            callers.append(caller)
            with contextlib.suppress(OSError):
                _send(caller, {"hello": _HELLO})
            refusal = _check(said, present, me)
            present.setdefault(said["process_id"], said)
        refusal = refusal or _check_reachable(present)
        for caller in callers:
            with contextlib.suppress(OSError):
                _send(caller, {"hello": _HELLO, "refusal": refusal})
        for caller in callers:
            # Whoever closes first keeps the port busy for a while: not this one, JAX is next.
            with contextlib.suppress(OSError):
                caller.settimeout(1.0)
                caller.recv(1)
    return refusal


def _listen(port: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", port))


def _answer(
    coordinator: str, host: str, port: int, me: dict[str, Any], deadline: float, timeout: float
) -> str | None:
    """Answers the rendezvous; returns process 0's verdict."""
    while True:
        try:
            with socket.create_connection((host, port), timeout=2.0) as connection:
                # A free port of the same host can be the caller's own: TCP connects it to itself.
                if connection.getsockname() == connection.getpeername():
                    raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")
                _send(connection, me)
                # Whoever gave up here and called again could be taken for two.
                if _receive(connection, deadline) is None:
                    reason = "what answers is no process of this job"
                else:
                    # Process 0 may have begun to wait just now.
                    verdict = _receive(connection, time.monotonic() + timeout + _PATIENCE)
                    if verdict is None:
                        return f"process 0 at {coordinator} has gone while it waited for others"
                    refusal: str | None = verdict["refusal"]
                    return refusal
        except OSError as error:
            reason = error.strerror or str(error)
        if time.monotonic() > deadline:
            return (
                f"--coordinator {coordinator}: expected process 0 there, found none in "
                f"{timeout:g} s ({reason})"
            )
        time.sleep(0.2)


def _check(said: dict[str, Any], present: dict[int, dict[str, Any]], me: Any) -> str | None:
    process_id, count = said["process_id"], said["num_processes"]
    if count != me["num_processes"]:
        return (
            f"--num-processes {count} of process {process_id} on {said['host']}: expected "
            f"{me['num_processes']}, as process 0 on {me['host']} has it"
        )
    if process_id in present:
        return (
            f"--process-id {process_id}: expected one process of this number, found one on "
            f"{present[process_id]['host']} and one on {said['host']}"
        )
    return None


def _missing(coordinator: str, present: Any, num_processes: int, timeout: float) -> str:
    missing = [str(i) for i in range(num_processes) if i not in present]
    which = f"process {missing[0]}" if len(missing) == 1 else f"processes {', '.join(missing)}"
    has = "has" if len(missing) == 1 else "have"
    return f"{which} of {num_processes} {has} not come to {coordinator} within {timeout:g} s"


def _check_reachable(present: dict[int, dict[str, Any]]) -> str | None:
    if len({said["host"] for said in present.values()}) == 1:
        return None
    for process_id, said in sorted(present.items()):
        reason = unreachable(said["host"], said["address"]) if said["gloo"] else None
        if reason:
            return f"process {process_id}: {reason}"
    return None


def _send(connection: socket.socket, message: dict[str, Any]) -> None:
    connection.sendall(json.dumps(message).encode() + b"\n")


def _receive(connection: socket.socket, deadline: float) -> dict[str, Any] | None:
    """Returns the next message, None if there comes none of a process of a job."""
    received = b""
    with contextlib.suppress(OSError, DamagedError):
        while not received.endswith(b"\n") and len(received) < _LONGEST:
            connection.settimeout(max(deadline - time.monotonic(), 0.001))
            part = connection.recv(1)  # No more than this message; they are few and short.
            if not part:
                return None
            received += part
        return parse_object(received, lambda message: message.get("hello") == _HELLO)
    return None
