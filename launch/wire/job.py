"""A run over UDP, started on this host or by ssh: its addresses, its key, and its processes."""

import functools
import secrets
import shlex
from collections.abc import Callable, Sequence
from typing import Any

from launch.cli.command_line import DIVERGED, USAGE, expect, requires
from launch.cli.fields import fields_of
from launch.config_file import CONFIG_FILE
from launch.distributed.job import LOGS, Job
from launch.distributed.process import Command, JobFailed, signal_name
from launch.wire.flags import NO_AUTHENTICATION, UdpFlags
from launch.wire.supervisor import supervise_members

_KEY_BYTES = 32
_LOOPBACK = "127.0.0.1"


def check_unused(flags: UdpFlags) -> None:
    """Raises `UsageError` for flags of exchanges over UDP where there are none."""
    for name, field in fields_of(UdpFlags).items():
        if getattr(flags, name) != field.default:
            requires(name, getattr(flags, name), "--network udp")


def udp_job(of_training: Sequence[str], flag: str, processes: int) -> Job:
    """Returns the job of a run with a worker a process.

    Args:
        of_training: Flags of launch.train.
        flag: The launcher's flag that decides how many processes there are.
        processes: How many.

    Raises:
        UsageError: They are no valid run over UDP.
    """
    expect(flag, processes, processes >= 1, "at least 1")
    # The last flag counts: who gives another number is told what it would have to be.
    job = Job(["--num-workers", str(processes), *of_training], "udp")
    workers = f"{job.config.num_workers}, a process a worker with --network udp"
    expect(flag, processes, processes == job.config.num_workers, workers)
    return job


def run_over_udp(
    job: Job,
    flags: UdpFlags,
    addresses: Sequence[str],
    coordinator: str,
    command: Callable[[int, Sequence[str], dict[str, Any]], Command],
    silence: float,
    max_restarts: int,
) -> int:
    """Runs a job over UDP; returns its exit status.

    Args:
        job: The training.
        flags: How workers send.
        addresses: `HOST:PORT` of each worker.
        coordinator: `HOST:PORT` of the coordinator, which is on the first worker's host.
        command: Given the number of a worker's host, what to run there after `python`, and what
            else the command has; returns it.
        silence: Seconds without a heartbeat after which a process is taken to hang.
        max_restarts: How often to start each process again.

    Raises:
        JobFailed: There is no result.
    """
    key = b"" if flags.no_authentication else secrets.token_bytes(_KEY_BYTES)
    shared = ["--no-authentication"] if flags.no_authentication else []
    if flags.no_authentication:
        print(NO_AUTHENTICATION, flush=True)
    sending = list(shared)
    for name in fields_of(UdpFlags):
        value = getattr(flags, name)
        if value is not None and name != "no_authentication":
            sending += [f"--{name.replace('_', '-')}", str(value)]
    host, _, port = coordinator.rpartition(":")
    # Where all processes are on this host, others cannot call.
    at = ["--host", host] if host == _LOOPBACK else []
    of_training = ["--", *job.flags()]
    commands = [
        command(
            number,
            [
                *("-m", "launch.udp", "worker", "--worker", str(number), *sending),
                *("--addresses", *addresses, "--coordinator", coordinator, *of_training),
            ],
            {"name": f"worker {number}", "secret": key},
        )
        for number in range(len(addresses))
    ]
    listening = ["-m", "launch.udp", "coordinator", "--port", port, *at, *shared, *of_training]
    commands.append(command(0, listening, {"name": "coordinator", "secret": key}))
    show = functools.partial(print, flush=True)
    logs, begun = job.folder.path / LOGS, job.folder.path / CONFIG_FILE
    folder = f"--output-dir {shlex.quote(str(job.folder.path))}"
    go_on = f"go on with the same command and\n--resume {folder}"
    try:
        ending = supervise_members(commands, logs, silence, show, max_restarts)
    except JobFailed as error:
        if error.exit_status in (USAGE, DIVERGED) or not begun.exists():
            raise
        raise JobFailed(f"{error}\n{go_on}", error.exit_status) from None
    if ending.exit_status:
        if not begun.exists():
            go_on = f"start again with the same command and\n{folder}"
        saved = _saved(len(addresses), ending.unsaved)
        show(f"stopped by {signal_name(ending.exit_status - 128)}, {saved}; {go_on}")
    return ending.exit_status


def _saved(workers: int, unsaved: Sequence[str]) -> str:
    """Returns which of the workers have saved a checkpoint, for people."""
    if not unsaved:
        return "each worker with a checkpoint"
    if len(unsaved) == workers:
        return "no worker with a new checkpoint"
    return f"each worker but {', '.join(unsaved)} with a checkpoint"
