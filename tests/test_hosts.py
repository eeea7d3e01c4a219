"""Four hosts on one machine: network namespaces on a bridge, each with its own name and address."""

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from run_files import assert_same_state, read_metrics, reproducible

from launch.distributed.job import process_flags

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[1]
PORT = 8476
ADDRESSES = {host: f"10.0.0.{host + 1}" for host in range(4)}

# Eleven steps an epoch: enough of them for a cable to be cut in between.
SMALL = ("--preset", "linear", "--num-workers", "4", "--batch-size", "32", "--epochs", "40")
SMALL += ("--checkpoint-every", "8", "--start-timeout", "300")
LAST_STEP = 440


@dataclasses.dataclass(frozen=True)
class Network:
    """Hosts host-0, host-1, ... of `ADDRESSES`, joined by a switch at 1 Gbps.

    Attributes:
        prefix: Of the names of their network namespaces.
    """

    prefix: str

    def on(self, host: int, *argv: str) -> list[str]:
        """Returns a command that runs another one on a host."""
        named = ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', f"host-{host}"]
        return ["ip", "netns", "exec", f"{self.prefix}host-{host}", *named, *argv]

    def name_hosts(self, host: int, addresses: dict[int, str]) -> None:
        """Writes the /etc/hosts of a host."""
        lines = [f"{address} host-{i}\n" for i, address in addresses.items()]
        folder = Path("/etc/netns", f"{self.prefix}host-{host}")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "hosts").write_text("".join(["127.0.0.1 localhost\n", *lines]))

    def set_cable(self, host: int, state: str) -> None:
        """Takes a host off the network (`down`), or puts it back (`up`)."""
        command("ip", "-n", f"{self.prefix}host-{host}", "link", "set", "eth0", state)


def command(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"{' '.join(argv)}: {done.stderr.strip() or done.returncode}")
    return done.stdout


def build(network: Network) -> None:
    switch = f"{network.prefix}switch"
    command("ip", "netns", "add", switch)
    command("ip", "-n", switch, "link", "add", "bridge", "up", "type", "bridge")
    for host, address in ADDRESSES.items():
        name = f"{network.prefix}host-{host}"
        command("ip", "netns", "add", name)
        network.name_hosts(host, ADDRESSES)
        cable = ("type", "veth", "peer", "name", "eth0", "netns", name)
        command("ip", "-n", switch, "link", "add", f"port-{host}", "up", *cable)
        command("ip", "-n", switch, "link", "set", f"port-{host}", "master", "bridge")
        shape = ("root", "tbf", "rate", "1gbit", "burst", "256kb", "latency", "50ms")
        command("tc", "-n", name, "qdisc", "add", "dev", "eth0", *shape)
        command("ip", "-n", name, "address", "add", f"{address}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            command("ip", "-n", name, "link", "set", device, "up")
        if command(*network.on(host, "hostname")) != f"host-{host}\n":
            raise OSError("a host does not know its name")


def destroy(network: Network) -> None:
    for name in [f"{network.prefix}host-{host}" for host in ADDRESSES] + [
        f"{network.prefix}switch"
    ]:
        with contextlib.suppress(OSError):
            for process in command("ip", "netns", "pids", name).split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(process), signal.SIGKILL)
            command("ip", "netns", "delete", name)
        shutil.rmtree(f"/etc/netns/{name}", ignore_errors=True)


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    if os.geteuid():
        pytest.skip("only root may make network namespaces")
    network = Network(f"rps-{os.getpid()}-")
    try:
        try:
            build(network)
        except OSError as error:
            pytest.skip(f"network namespaces cannot be made here ({error})")
        yield network
    finally:
        destroy(network)


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}


def train_on(
    network: Network, hosts: Sequence[int], environment: dict[str, str], *argv: str
) -> list[tuple[int, str]]:
    """Starts a process on each of some hosts; returns the status and the words of each."""
    coordinator = f"host-{hosts[0]}:{PORT}"
    processes = []
    for process, host in enumerate(hosts):
        flags = [*argv, *process_flags(coordinator, len(hosts), process)]
        train = network.on(host, sys.executable, "-m", "launch.train", *flags)
        processes.append(
            subprocess.Popen(
                train, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
        )
    try:
        said = [process.communicate(timeout=600)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, text) for process, text in zip(processes, said, strict=True)]


@pytest.fixture(scope="module")
def whole(
    network: Network, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Returns the folder of a run over all hosts, each told where the others are."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    flags = (*SMALL, "--output-dir", str(folder))
    ends = train_on(network, list(ADDRESSES), environment, *flags)
    assert all(status == 0 for status, _ in ends), ends
    return folder


def test_hosts_that_are_told_their_coordinator_train_together(whole: Path) -> None:
    summary = json.loads((whole / "summary.json").read_text())
    assert summary["devices"] == "4 x cpu in 4 processes"
    assert summary["step"] == LAST_STEP
    assert summary["test_accuracy"] > 0.9


def test_a_cable_that_is_cut_ends_the_job_which_then_resumes_to_the_same_result(
    whole: Path, network: Network, environment: dict[str, str], tmp_path: Path
) -> None:
    ssh, hosts, folder = tmp_path / "ssh", tmp_path / "hosts", tmp_path / "run"
    hosts.write_text("".join(f"host-{host}\n" for host in ADDRESSES))
    # Given a host and a command, as ssh is.
    ssh.write_text(
        f'#!/bin/sh\nexec ip netns exec "{network.prefix}$1" unshare --uts '
        """sh -c 'hostname "$0" && exec sh -c "$1"' "$1" "$2"\n"""
    )
    ssh.chmod(0o755)
    launch = [sys.executable, "-m", "launch.hosts", "--hostfile", str(hosts)]
    launch += ["--ssh", str(ssh), "--heartbeat-timeout", "200"]
    flags = ["--output-dir", str(folder)]

    job = subprocess.Popen(
        [*launch, "--", *SMALL, *flags],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        while not (folder / "checkpoints").exists() or len(read_metrics(folder)) < 3:
            assert job.poll() is None, job.communicate()[0]
            time.sleep(0.05)
        network.set_cable(2, "down")
        said, _ = job.communicate(timeout=300)
    finally:
        job.kill()
        network.set_cable(2, "up")
    assert job.returncode != 0
    assert not (folder / "summary.json").exists()
    error = said[said.index("error: process ") :]
    assert " on host-" in error
    # Of whichever has met it first: the exchange, or JAX's own heartbeats.
    assert "another process of the job has gone" in error or "Terminating process" in error, error

    done = subprocess.run(
        [*launch, "--", "--resume", *flags],
        cwd=ROOT, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[0] resuming at step" in done.stdout
    assert_same_state(folder, whole, LAST_STEP)
    assert reproducible(folder) == reproducible(whole)


def test_a_host_whose_name_is_a_loopback_address_is_refused(
    network: Network, environment: dict[str, str], tmp_path: Path
) -> None:
    network.name_hosts(3, ADDRESSES | {3: "127.0.1.1"})
    try:
        flags = (*SMALL, "--output-dir", str(tmp_path / "run"))
        ends = train_on(network, [1, 3], environment, *flags)
    finally:
        network.name_hosts(3, ADDRESSES)
    for status, said in ends:
        assert status == 1
        assert "error: process 1: the name of host host-3 resolves to 127.0.1.1 there" in said
    assert not (tmp_path / "run").exists()
