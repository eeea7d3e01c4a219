r"""Trains over UDP, a worker a process, started by hand: `python -m launch.udp --help`.

    RUN="--key-file KEY -- --num-workers 3 --output-dir runs/udp"
    python -m launch.udp coordinator --port 4000 $RUN
    python -m launch.udp worker --worker 0 --addresses first:4100 second:4100 third:4100 \
        --coordinator first:4000 $RUN

`python -m launch.local --network udp` and `launch.hosts` start both. What follows `--` are flags of
`launch.train`.
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import jax

from launch.cli.command_line import (
    Within,
    expect,
    not_allowed,
    optional,
    read_command,
    refuse,
    requires,
    split_arguments,
)
from launch.cli.commands import entry_point, subcommand
from launch.config import TrainConfig, parse
from launch.distributed.devices import start_devices
from launch.distributed.gpus import take_gpu
from launch.distributed.heartbeat import start_heartbeat, supervised, wait_for_secret
from launch.distributed.rendezvous import address_of_flag
from launch.tasks.source import find_source
from launch.trainer.run_directory import RunDirectory
from launch.wire.flags import NO_AUTHENTICATION, UdpFlags, read_key

_COMMANDS = {
    "worker": "one worker: trains, and exchanges blocks with the others",
    "coordinator": "takes the workers' reports, evaluates their mean model, writes the results",
}
_SECRET_SECONDS = 60.0


@dataclasses.dataclass(frozen=True)
class _WithKey:
    key_file: Annotated[Path | None, optional("PATH", "required")] = None
    """File with the key that all processes of the run, and of no other, share: openssl rand -hex
    32."""


@dataclasses.dataclass(frozen=True)
class WorkerConfig(_WithKey, UdpFlags):
    """Train one worker. Flags of launch.train may follow after " -- "."""

    worker: Annotated[int | None, optional("INT", "required")] = None
    """Index of this worker."""
    addresses: Annotated[tuple[str, ...] | None, optional("HOST:PORT", "required")] = None
    """Address of each worker, in their order; the port of this worker's is opened here."""
    coordinator: Annotated[str | None, optional("HOST:PORT", "none")] = None
    """Where the coordinator is; without one, there are no metrics of all workers."""


@dataclasses.dataclass(frozen=True)
class CoordinatorConfig(_WithKey):
    """Write the results of a run over UDP. Flags of launch.train may follow after " -- "."""

    port: Annotated[int, Within(1, 65535, "a port, 1 to 65535")] = 4000
    """Where workers report, over TCP."""
    host: Annotated[str | None, optional("ADDRESS", "all of this host's")] = None
    """Address of this host where they reach it."""
    no_authentication: bool = False
    """Take reports from anyone."""


@entry_point
def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    command = subcommand("launch.udp", _COMMANDS, argv)
    if command is not None:
        start_heartbeat()
        own, of_training = split_arguments(argv[1:])
        (_run_worker if command == "worker" else _run_coordinator)(own, of_training)
    return 0


def _run_worker(own: Sequence[str], of_training: Sequence[str]) -> None:
    flags = read_command(WorkerConfig, "launch.udp worker", own, WorkerConfig())
    config = parse(of_training, "udp")
    if flags.addresses is None:
        requires("worker", flags.worker, "--addresses, those of all workers")
    addresses = [address_of_flag("addresses", text) for text in flags.addresses]
    n = config.num_workers
    expect("addresses", " ".join(flags.addresses), len(addresses) == n, f"{n}, one a worker")
    if flags.worker is None or not 0 <= flags.worker < n:
        refuse("worker", flags.worker, f"0 to {n - 1}")
    coordinator = None
    if flags.coordinator is not None:
        coordinator = address_of_flag("coordinator", flags.coordinator)
    if config.record is not None and coordinator is None:
        requires("record", config.record, "--coordinator, which writes it")
    key = _key(flags.key_file, flags.no_authentication)
    output_dir = _output_dir(config)
    source = find_source(config)

    hosts = [host for host, _ in addresses]
    host = hosts[flags.worker]
    take_gpu(hosts[: flags.worker].count(host), hosts.count(host))
    start_devices(1, None)
    # Imported late: it takes seconds, and what was wrong with the command line is said by now.
    from launch.wire.worker import train_worker
    from rps_jax import transport

    try:
        network = transport.join(
            addresses,
            flags.worker,
            key,
            seed=config.seed,
            link_rate=flags.link_rate,
            deadline=flags.deadline,
            mtu=flags.mtu,
            start_timeout=config.start_timeout,
            lower_effort=flags.dscp == "le",
            assignment=config.assignment,
            record=config.record is not None,
        )
    except OSError as error:
        own = flags.addresses[flags.worker]
        refuse("addresses", own, f"one of this host's, and a free port ({error.strerror or error})")
    train_worker(config, source, output_dir, network, coordinator, key)


def _run_coordinator(own: Sequence[str], of_training: Sequence[str]) -> None:
    flags = read_command(CoordinatorConfig, "launch.udp coordinator", own, CoordinatorConfig())
    config = parse(of_training, "udp")
    key = _key(flags.key_file, flags.no_authentication)
    output_dir = _output_dir(config)
    done = RunDirectory(output_dir).is_done and not config.resume
    expect("output_dir", output_dir, not done, "a run that is not done (--resume goes on with it)")
    source = find_source(config)
    jax.config.update("jax_platforms", "cpu")  # GPUs are the workers'.
    start_devices(config.num_workers, config.num_workers)
    from launch.reports.results import print_summary
    from launch.wire.coordinator import coordinate

    summary = coordinate(config, source, output_dir, flags.port, key, flags.host or "")
    print_summary(summary, output_dir)


def _key(path: Path | None, no_authentication: bool) -> bytes | None:
    """Returns the key: of the launcher, of a file, or None, which is said."""
    if no_authentication:
        if path is not None:
            not_allowed("key_file", path, "beside --no-authentication")
        print(NO_AUTHENTICATION, flush=True)
        return None
    if path is None and not supervised():
        refuse("key_file", None, "a file with the run's key, or --no-authentication")
    return wait_for_secret(_SECRET_SECONDS) if path is None else read_key(path)


def _output_dir(config: TrainConfig) -> Path:
    """Returns the folder of the run, in which a process that is started again finds it."""
    if config.output_dir is None:
        refuse("output_dir", None, "the folder of the run, the same for all of its processes")
    return config.output_dir


if __name__ == "__main__":
    sys.exit(main())
