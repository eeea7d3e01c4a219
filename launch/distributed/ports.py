"""Ports of this machine."""

import contextlib
import socket


def free_port() -> int:
    """Returns a port of this machine that nothing listens to."""
    return free_ports(1, socket.SOCK_STREAM)[0]


def free_ports(count: int, kind: socket.SocketKind) -> list[int]:
    """Returns different ports of this machine that nothing listens to, of TCP or UDP."""
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(socket.socket(type=kind)) for _ in range(count)]
        for each in opened:
            each.bind(("", 0))
        return [each.getsockname()[1] for each in opened]
