"""Runs a training as several JAX processes on this machine: `python -m launch.local --help`.

    python -m launch.local --processes 2 --devices-per-process 4
    python -m launch.local --processes 4 --max-restarts 3 -- --preset atis-lstm --data-path ATIS
    python -m launch.local --network udp --processes 4

What follows `--` are flags of `launch.train`.
"""

import dataclasses
import socket
import sys
from collections.abc import Sequence
from typing import Annotated, Any

from launch.cli.command_line import (
    expect,
    not_allowed,
    optional,
    read_command,
    split_arguments,
)
from launch.cli.commands import entry_point
from launch.cli.fields import AT_LEAST_0
from launch.config import NetworkName
from launch.distributed.gpus import check_platforms, share_gpus, visible_gpus
from launch.distributed.job import HeartbeatTimeout, Job, process_flags
from launch.distributed.ports import free_port, free_ports
from launch.distributed.process import Command
from launch.tasks.source import find_source
from launch.wire.flags import UdpFlags
from launch.wire.job import check_unused, run_over_udp, udp_job


@dataclasses.dataclass(frozen=True)
class LocalConfig(UdpFlags):
    """Run a training as several JAX processes on this machine.

    Flags of launch.train may follow after " -- ".
    """

    processes: int = 2
    """How many processes share the workers; over UDP, each has one."""
    network: NetworkName = "collectives"
    """What carries the blocks: JAX's collectives, drops simulated, or UDP, which really drops."""
    devices_per_process: Annotated[
        int | None, optional("INT", "one a worker, or a share of the GPUs")
    ] = None
    """Devices of each process: parts of the CPU, or GPUs of its own where there are any."""
    max_restarts: Annotated[int, AT_LEAST_0] = 0
    """How often to start the job again when a process fails; over UDP, that process alone."""
    heartbeat_timeout: HeartbeatTimeout = 20.0
    """Seconds without a heartbeat after which a process is taken to hang."""


@entry_point
def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    own, of_training = split_arguments(argv)
    config = read_command(LocalConfig, "launch.local", own, LocalConfig())
    if config.network == "udp":
        return _run_over_udp(config, of_training)
    check_unused(config)
    job = Job(of_training)
    job.check_processes("processes", config.processes)
    job.check_restarts(config.max_restarts)
    check_platforms()
    gpus = visible_gpus()
    devices = config.devices_per_process
    if devices is not None:
        workers = job.config.num_workers // config.processes
        expect(
            "devices_per_process",
            devices,
            devices >= 1 and workers % devices == 0,
            f"a divisor of the {workers} workers of each process",
        )
    shares = share_gpus(gpus, config.processes, devices)
    find_source(job.config)

    def start(flags: Sequence[str]) -> list[Command]:
        coordinator = f"127.0.0.1:{free_port()}"
        shared = list(flags)
        if devices is not None:
            per_device = job.config.num_workers // (config.processes * devices)
            shared += ["--workers-per-device", str(per_device)]
        return [
            Command(
                [
                    *(sys.executable, "-m", "launch.train", *shared),
                    *process_flags(coordinator, config.processes, number),
                ],
                {"CUDA_VISIBLE_DEVICES": ",".join(shares[number])} if gpus else {},
            )
            for number in range(config.processes)
        ]

    return job.run(start, config.max_restarts, config.heartbeat_timeout)


def _run_over_udp(config: LocalConfig, of_training: Sequence[str]) -> int:
    if config.devices_per_process is not None:
        not_allowed("devices_per_process", config.devices_per_process, "with --network udp")
    job = udp_job(of_training, "processes", config.processes)
    find_source(job.config)

    def command(number: int, arguments: Sequence[str], options: dict[str, Any]) -> Command:
        del number
        return Command([sys.executable, *arguments], {}, **options)

    ports = free_ports(config.processes, socket.SOCK_DGRAM)
    addresses = [f"127.0.0.1:{port}" for port in ports]
    coordinator = f"127.0.0.1:{free_port()}"
    return run_over_udp(
        job,
        config,
        addresses,
        coordinator,
        command,
        config.heartbeat_timeout,
        config.max_restarts,
    )


if __name__ == "__main__":
    sys.exit(main())
