"""Runs a training over several hosts by ssh: `python -m launch.hosts --help`.

    python -m launch.hosts --hostfile HOSTS
    python -m launch.hosts --hostfile HOSTS --max-restarts 3 -- --preset atis-lstm --data-path ATIS

HOSTS names a host a line, `NAME`, or `NAME slots=N` for N processes there; process 0 is on the
first. Every host has this checkout and its Python at the same place, and they all share the folder
of --output-dir; with --network udp they need not share it. What follows `--` are flags of
`launch.train`.
"""

import dataclasses
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from launch.cli.command_line import (
    UsageError,
    Within,
    expect,
    optional,
    read_command,
    split_arguments,
)
from launch.cli.commands import entry_point
from launch.cli.fields import AT_LEAST_0
from launch.config import NetworkName
from launch.distributed.heartbeat import ENVIRONMENT
from launch.distributed.job import HeartbeatTimeout, Job, process_flags
from launch.distributed.process import Command, JobFailed
from launch.wire.flags import UdpFlags
from launch.wire.job import check_unused, run_over_udp, udp_job

_PASSED_ON = ("JAX_", "XLA_", "NCCL_", "TFDS_", "XDG_CACHE_HOME")
"""How the variables begin that the processes on the hosts get from here."""

_FREE_PORTS = (
    "import socket; all = [socket.socket(type=socket.{kind}) for _ in range({count})]; "
    "[s.bind(('', 0)) for s in all]; print(*[s.getsockname()[1] for s in all])"
)
_FREE_PORTS_SECONDS = 60.0


@dataclasses.dataclass(frozen=True)
class HostsConfig(UdpFlags):
    """Run a training over several hosts by ssh.

    Flags of launch.train may follow after " -- ".
    """

    hostfile: Annotated[Path | None, optional("PATH", "required")] = None
    """A host a line: NAME, or NAME slots=N for N processes there."""
    network: NetworkName = "collectives"
    """What carries the blocks: JAX's collectives, drops simulated, or UDP, which really drops."""
    port: Annotated[
        int | None, optional("INT", "a free one"), Within(1, 65535, "a port, 1 to 65535")
    ] = None
    """Where process 0, on the first host, meets the others; over UDP, worker I is at port + I."""
    ssh: str = "ssh -o BatchMode=yes -o ConnectTimeout=10"
    """Command that is given a host and what to run there."""
    python: str = sys.executable
    """Python on the hosts."""
    directory: Path = Path()
    """Folder of this checkout on the hosts."""
    max_restarts: Annotated[int, AT_LEAST_0] = 0
    """How often to start the job again when a process fails; over UDP, that process alone."""
    heartbeat_timeout: HeartbeatTimeout = 30.0
    """Seconds without a heartbeat after which a process is taken to hang."""


@entry_point
def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    own, of_training = split_arguments(argv)
    config = read_command(HostsConfig, "launch.hosts", own, HostsConfig())
    expect("ssh", config.ssh, _can_run(config.ssh), "a command that can be run here")
    places = read_hostfile(config.hostfile)
    if config.network == "udp":
        return _run_over_udp(config, places, of_training)
    check_unused(config)
    job = Job(of_training)
    job.check_processes("hostfile", len(places))
    job.check_restarts(config.max_restarts)

    def start(flags: Sequence[str]) -> list[Command]:
        port = config.port or _free_ports(config, places[0], socket.SOCK_STREAM)[0]
        coordinator = f"{_address(places[0])}:{port}"
        commands = []
        for number, place in enumerate(places):
            of_process = process_flags(coordinator, len(places), number)
            arguments = ["-m", "launch.train", *flags, *of_process]
            commands.append(Command(_on_host(config, place, arguments), {}, place))
        return commands

    return job.run(start, config.max_restarts, config.heartbeat_timeout)


def _run_over_udp(config: HostsConfig, places: Sequence[str], of_training: Sequence[str]) -> int:
    job = udp_job(of_training, "hostfile", len(places))

    def command(number: int, arguments: Sequence[str], options: dict[str, Any]) -> Command:
        place = places[number]
        return Command(_on_host(config, place, arguments), {}, place, **options)

    port, last = config.port, 65536 - len(places)
    if port is not None:
        expect("port", port, port <= last, f"at most {last}, for {len(places)} workers")
        ports, meeting = list(range(port, port + len(places))), port
    else:
        # Those of one host are asked for together: they are different.
        of_host = {
            place: iter(_free_ports(config, place, socket.SOCK_DGRAM, places.count(place)))
            for place in dict.fromkeys(places)
        }
        ports = [next(of_host[place]) for place in places]
        meeting = _free_ports(config, places[0], socket.SOCK_STREAM)[0]
    hosts = [_address(place) for place in places]
    return run_over_udp(
        job,
        config,
        [f"{host}:{port}" for host, port in zip(hosts, ports, strict=True)],
        f"{hosts[0]}:{meeting}",
        command,
        config.heartbeat_timeout,
        config.max_restarts,
    )


def read_hostfile(path: Path | None) -> list[str]:
    """Returns the host of each process.

    Args:
        path: A file of lines `[USER@]NAME` or `[USER@]NAME slots=N`; `#` begins a comment.

    Raises:
        UsageError: It cannot be read, or names no host.
    """
    if path is None:
        raise UsageError("--hostfile: expected a file that names a host a line")
    try:
        lines = path.read_text().splitlines()
    except (OSError, ValueError) as error:
        raise UsageError(f"--hostfile {path}: expected a file that can be read ({error})") from None
    places = []
    for number, line in enumerate(lines, start=1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        found = re.fullmatch(r"([^\s-]\S*)(?:\s+slots\s*=\s*([1-9][0-9]{0,3}))?", text)
        if found is None:
            raise UsageError(
                f"--hostfile {path}: expected NAME or NAME slots=N, N from 1 to 9999, found "
                f"{text!r} in line {number}"
            )
        places += [found[1]] * int(found[2] or 1)
    if not places:
        raise UsageError(f"--hostfile {path}: expected a host a line, found none")
    return places


def _can_run(command: str) -> bool:
    """Returns whether a command line, quoted as for a shell, names a program that is there."""
    try:
        words = shlex.split(command)
    except ValueError:
        return False
    return bool(words) and shutil.which(words[0]) is not None


def _on_host(config: HostsConfig, place: str, arguments: Sequence[str]) -> list[str]:
    """Returns what runs Python on a host."""
    variables = {
        name: value for name, value in sorted(os.environ.items()) if name.startswith(_PASSED_ON)
    }
    variables[ENVIRONMENT] = "1"
    settings = [f"{name}={value}" for name, value in variables.items()]
    command = shlex.join(["env", *settings, config.python, *arguments])
    directory = shlex.quote(str(config.directory.absolute()))
    return [*shlex.split(config.ssh), place, f"cd {directory} && exec {command}"]


def _free_ports(
    config: HostsConfig, place: str, kind: socket.SocketKind, count: int = 1
) -> list[int]:
    """Returns different ports of a host that nothing listens to, of TCP or UDP."""
    code = _FREE_PORTS.format(kind=kind.name, count=count)
    try:
        done = subprocess.run(
            _on_host(config, place, ["-c", code]),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_FREE_PORTS_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise JobFailed(f"host {place}: expected an answer to {config.ssh} ({error})", 1) from None
    found = done.stdout.split()
    if done.returncode or len(found) != count or not all(map(str.isdecimal, found)):
        said = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["it said nothing"]
        raise JobFailed(
            f"host {place}: expected Python to run there by {config.ssh} ({said[0]})", 1
        )
    return list(map(int, found))


def _address(place: str) -> str:
    """Returns the host of `[USER@]HOST`, as it stands before a port."""
    host = place.rpartition("@")[2]
    return f"[{host}]" if ":" in host else host


if __name__ == "__main__":
    sys.exit(main())
