"""The bed: network namespaces on one switch, which end with the process that made them."""

import contextlib
import ctypes
import dataclasses
import functools
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar

from launch.bed.link import Link
from launch.bed.offload import set_features

_CLONE_NEWNET = 0x40000000
_COMMANDS = ("ip", "tc", "unshare", "nsenter", "setpriv", "hostname")
# Segments are cut before the cable, so that what is dropped is single packets.
_NO_SEGMENTATION = dict.fromkeys(
    (
        "tx-tcp-segmentation",
        "tx-tcp-ecn-segmentation",
        "tx-tcp-mangleid-segmentation",
        "tx-tcp6-segmentation",
        "tx-udp-segmentation",
    ),
    False,
)
# They are joined again where they arrive, as real cards do it; the kernel does so only where the
# other end of the virtual cable does no segmentation either.
_CARD = {**_NO_SEGMENTATION, "rx-gro": True}
# Is told its name and its /etc/hosts; lives until whoever holds the other end of its stdin is gone.
_HOLD = """
set -e
hostname "$0"
ip link set lo up
mount -t tmpfs none /mnt
printf %s "$1" > /mnt/hosts
mount --bind /mnt/hosts /etc/hosts
umount -l /mnt
echo made
exec cat > /dev/null
"""

_CABLE_SECONDS = 10.0
_IPV4 = Path("/proc/sys/net/ipv4")
"""Of the network namespace of the thread that looks."""

Found = TypeVar("Found")


class Counts(NamedTuple):
    """What has passed on the bed; the differences between two changes of its link mean something.

    Attributes:
        sent_bytes: by all hosts, headers of Ethernet included, those of drops as well.
        sent_packets: by all hosts.
        random_drops: packets, by the links' drop rate.
        queue_drops: packets for which there was no room in the switch or at a card.
        buffer_drops: datagrams for which there was no room in their socket.
    """

    sent_bytes: int
    sent_packets: int
    random_drops: int
    queue_drops: int
    buffer_drops: int

    def since(self, before: "Counts") -> "Counts":
        """Returns what has passed since."""
        return Counts(*(now - then for now, then in zip(self, before, strict=True)))


@dataclasses.dataclass
class Bed:
    """Hosts on one switch; a context manager.

    Every host is a network namespace, with a name (`host-0`, `host-1`, ...), an address, and an
    /etc/hosts of its own; the switch is another. They have no names outside, and nothing of the
    machine's own network is touched: when this process ends, however it ends, they are gone.

    Attributes:
        num_hosts: How many.
        link: The cable of each; `set_link` changes it.
        congestion_control: Of TCP, one of `congestion_controls`; None for the machine's.
    """

    num_hosts: int
    link: Link
    congestion_control: str | None = None
    _holders: list[subprocess.Popen[str]] = dataclasses.field(default_factory=list, repr=False)
    _started: list[subprocess.Popen[Any]] = dataclasses.field(default_factory=list, repr=False)

    @property
    def addresses(self) -> list[str]:
        """The address of each host."""
        return [f"10.0.{host // 250}.{host % 250 + 1}" for host in range(self.num_hosts)]

    def __enter__(self) -> Self:
        try:
            self._build()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        for process in self._started:
            process.kill()
        for process in [*self._started, *self._holders]:
            # What is left in the pipes of a process is of no interest.
            with contextlib.suppress(OSError):
                if process.stdin:
                    process.stdin.close()
            process.wait()
            for pipe in (process.stdout, process.stderr):
                if pipe:
                    pipe.close()
        self._started.clear()
        self._holders.clear()

    def command(self, host: int, *argv: str) -> list[str]:
        """Returns a command that runs another one on a host.

        It is killed when the thread that started it ends, or the whole process.
        """
        return ["setpriv", "--pdeathsig", "KILL", *self._enter(host), *argv]

    def start(self, host: int, *argv: str, **options: Any) -> subprocess.Popen[Any]:
        """Starts a command on a host; it is killed when the bed is left, or this thread ends.

        Args:
            host: Which.
            *argv: The command.
            **options: As of `subprocess.Popen`.
        """
        # Out of reach of the terminal's Ctrl-C: it is the bed's to end.
        process = subprocess.Popen(self.command(host, *argv), start_new_session=True, **options)
        self._started.append(process)
        return process

    def inside(self, host: int, work: Callable[[], Found]) -> Found:
        """Returns `work()` of a thread that is on a host's network: the sockets made there stay.

        Args:
            host: Which.
            work: What to do there; it sees the network of the host, and the files of the machine.
        """

        def enter() -> Found:
            with open(f"/proc/{self._holders[host].pid}/ns/net") as namespace:
                if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), _CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), "setns")
            return work()

        with ThreadPoolExecutor(1) as thread:
            return thread.submit(enter).result()

    def set_link(self, link: Link) -> None:
        """Changes the cables of all hosts; what is under way arrives, or is dropped."""
        self.link = link
        self._run(self._switch, "ip", [f"link set {port} mtu {link.mtu}" for port in self._ports])
        self._run(self._switch, "tc", [line for port in self._ports for line in link.of_port(port)])
        for host in range(self.num_hosts):
            self._run(host, "ip", [f"link set eth0 mtu {link.mtu}"])
            self._run(host, "tc", link.of_card("eth0"))

    def set_cable(self, host: int, state: str) -> None:
        """Takes a host off the network (`down`), or puts it back (`up`), and waits until it is."""
        self._run(host, "ip", [f"link set eth0 {state}"])
        if state == "up":
            self._wait_for_cable(host)

    def counts(self) -> Counts:
        """Returns what has passed until now."""
        cards = [self._qdiscs(host, "eth0") for host in range(self.num_hosts)]
        ports = self._qdiscs(self._switch)
        sent = [one for card in cards for one in card]
        return Counts(
            sent_bytes=sum(one["bytes"] for one in sent),
            sent_packets=sum(one["packets"] for one in sent),
            random_drops=sum(one["drops"] for one in ports if one["kind"] == "clsact"),
            queue_drops=sum(one["drops"] for one in [*sent, *ports] if one["kind"] != "clsact"),
            buffer_drops=sum(self._buffer_drops(host) for host in range(self.num_hosts)),
        )

    def used_congestion_control(self) -> str:
        """Returns the congestion control of TCP on the hosts."""
        return self.inside(0, lambda: (_IPV4 / "tcp_congestion_control").read_text().strip())

    @property
    def _switch(self) -> int:
        return self.num_hosts

    @property
    def _ports(self) -> list[str]:
        return [f"port-{host}" for host in range(self.num_hosts)]

    def _build(self) -> None:
        if reason := missing():
            raise OSError(f"network namespaces cannot be made: {reason}")
        names = [f"host-{host}" for host in range(self.num_hosts)]
        lines = [f"{address} {name}\n" for address, name in zip(self.addresses, names, strict=True)]
        etc_hosts = "".join(["127.0.0.1 localhost\n", *lines])
        for name in [*names, "switch"]:
            self._hold(name, etc_hosts)
        cables = []
        for host, (port, address) in enumerate(zip(self._ports, self.addresses, strict=True)):
            card = f"02:00:00:00:{host // 256:02x}:{host % 256:02x}"
            peer = f"name eth0 address {card} netns {self._holders[host].pid}"
            cables += [
                f"link add name {port} type veth peer {peer}",
                f"link set {port} addrgenmode none up",
                f"route add {address} dev {port}",
                # Known for good: nothing waits to be asked for when a cable is put back.
                f"neighbor add {address} lladdr {card} dev {port} nud permanent",
            ]
        self._run(self._switch, "ip", cables)
        self.inside(self._switch, functools.partial(_route, self._ports))
        for host, address in enumerate(self.addresses):
            own = [f"address add {address}/16 dev eth0", "link set eth0 addrgenmode none up"]
            self._run(host, "ip", own)
            if used := self.congestion_control:
                self.inside(host, functools.partial(_use_congestion_control, used))
            self._set_features(host, "eth0", _CARD)
            self._set_features(self._switch, self._ports[host], _NO_SEGMENTATION)
        self._run(self._switch, "tc", [f"qdisc add dev {port} clsact" for port in self._ports])
        self.set_link(self.link)
        for host in range(self.num_hosts):
            self._wait_for_cable(host)

    def _wait_for_cable(self, host: int) -> None:
        """Waits until the switch has noticed that a host's cable is up: the kernel tells it later.

        Raises:
            OSError: It does not.
        """
        port = ["ip", "-json", "link", "show", "dev", self._ports[host]]
        until = time.monotonic() + _CABLE_SECONDS
        while time.monotonic() < until:
            (found,) = json.loads(_run([*self._enter(self._switch), *port]))
            if found["operstate"] == "UP":
                return
            time.sleep(0.01)
        raise OSError(f"the cable of host-{host} is not up after {_CABLE_SECONDS:g} s")

    def _set_features(self, host: int, device: str, features: dict[str, bool]) -> None:
        with self.inside(host, lambda: socket.socket(type=socket.SOCK_DGRAM)) as control:
            set_features(control, device, features)

    def _hold(self, name: str, etc_hosts: str) -> None:
        holder = subprocess.Popen(
            ["unshare", "--net", "--uts", "--mount", "sh", "-c", _HOLD, name, etc_hosts],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._holders.append(holder)
        assert holder.stdout
        assert holder.stderr
        if not holder.stdout.readline():
            raise OSError(f"network namespaces cannot be made: {holder.stderr.read().strip()}")

    def _enter(self, host: int) -> list[str]:
        target = f"--target={self._holders[host].pid}"
        return ["nsenter", target, "--net", "--uts", "--mount", f"--wdns={os.getcwd()}"]

    def _run(self, host: int, program: str, lines: Sequence[str]) -> None:
        _run([*self._enter(host), program, "-batch", "-"], "".join(f"{line}\n" for line in lines))

    def _qdiscs(self, host: int, *device: str) -> list[dict[str, Any]]:
        show = ["tc", "-statistics", "-json", "qdisc", "show", *(("dev", *device) * bool(device))]
        found = json.loads(_run([*self._enter(host), *show]))
        # Children count what their parents have counted.
        return [one for one in found if one.get("root") or one["kind"] == "clsact"]

    def _buffer_drops(self, host: int) -> int:
        text = Path(f"/proc/{self._holders[host].pid}/net/snmp").read_text()
        names, values = (line.split() for line in text.splitlines() if line.startswith("Udp: "))
        return int(values[names.index("RcvbufErrors")])


def congestion_controls() -> list[str]:
    """Returns the names of TCP's congestion controls that this kernel has."""
    return (_IPV4 / "tcp_available_congestion_control").read_text().split()


def _use_congestion_control(name: str) -> None:
    (_IPV4 / "tcp_congestion_control").write_text(name)


def _route(ports: Sequence[str]) -> None:
    """Makes this network the switch: it passes on what comes, and answers for who is elsewhere.

    It routes, since what a router has taken no longer counts as what its sender has still to send,
    as it does in a bridge: a full queue drops, and makes nobody wait.
    """
    (_IPV4 / "ip_forward").write_text("1")
    (_IPV4 / "conf/all/proxy_arp").write_text("1")
    for port in ports:
        (_IPV4 / "neigh" / port / "proxy_delay").write_text("0")


def missing() -> str | None:
    """Returns why there can be no bed here: one line, None if nothing is missing."""
    if sys.platform != "linux":
        return "only Linux has them"
    if os.geteuid():
        return "only root may make them"
    lacking = [command for command in _COMMANDS if not shutil.which(command)]
    if lacking:
        return f"{', '.join(lacking)} not found (packages iproute2, util-linux and hostname)"
    return None


def _run(argv: Sequence[str], text: str = "") -> str:
    done = subprocess.run(argv, input=text, capture_output=True, text=True)
    if done.returncode:
        said = " ".join((done.stderr.strip() or str(done.returncode)).split())
        raise OSError(f"{' '.join(argv)}: {said}")
    return done.stdout
