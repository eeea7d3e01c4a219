"""Three hosts on one machine: network namespaces on a switch, each with a name and an address."""

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from bed import bed_or_skip
from run_files import assert_same_state, read_metrics, reproducible

from launch.bed import Bed, Link
from launch.distributed.job import process_flags

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[1]
PORT = 8476

# Fifteen steps an epoch: enough of them for a cable to be cut in between.
SMALL = ("--preset", "linear", "--num-workers", "3", "--batch-size", "32", "--epochs", "12")
SMALL += ("--checkpoint-every", "2", "--start-timeout", "300")
LAST_STEP = 180


@pytest.fixture(scope="module")
def network() -> Iterator[Bed]:
    with bed_or_skip(3, Link(rate=1e9)) as bed:
        yield bed


def name_hosts(network: Bed, host: int, addresses: Sequence[str]) -> None:
    """Writes the /etc/hosts of a host."""
    lines = [f"{address} host-{i}\n" for i, address in enumerate(addresses)]
    write = network.command(host, "tee", "/etc/hosts")
    subprocess.run(write, input="".join(lines), text=True, stdout=subprocess.DEVNULL, check=True)


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}


def train_on(
    network: Bed, hosts: Sequence[int], environment: dict[str, str], *argv: str
) -> list[tuple[int, str]]:
    """Starts a process on each of some hosts; returns the status and the words of each."""
    coordinator = f"host-{hosts[0]}:{PORT}"
    processes = []
    for process, host in enumerate(hosts):
        flags = [*argv, *process_flags(coordinator, len(hosts), process)]
        train = network.command(host, sys.executable, "-m", "launch.train", *flags)
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
    network: Bed, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Returns the folder of a run over all hosts, each told where the others are."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    flags = (*SMALL, "--output-dir", str(folder))
    ends = train_on(network, range(3), environment, *flags)
    assert all(status == 0 for status, _ in ends), ends
    return folder


def test_hosts_that_are_told_their_coordinator_train_together(whole: Path) -> None:
    summary = json.loads((whole / "summary.json").read_text())
    assert summary["devices"] == "3 x cpu in 3 processes"
    assert summary["step"] == LAST_STEP
    assert summary["test_accuracy"] > 0.9


def test_a_cable_that_is_cut_ends_the_job_which_then_resumes_to_the_same_result(
    whole: Path, network: Bed, environment: dict[str, str], tmp_path: Path
) -> None:
    ssh, hosts, folder = tmp_path / "ssh", tmp_path / "hosts", tmp_path / "run"
    hosts.write_text("".join(f"host-{host}\n" for host in range(3)))
    # Given a host and a command, as ssh is.
    cases = [f'host-{i}) exec {shlex.join(network.command(i))} sh -c "$2";;' for i in range(3)]
    ssh.write_text("\n".join(["#!/bin/sh", 'case "$1" in', *cases, "esac", ""]))
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
    network: Bed, environment: dict[str, str], tmp_path: Path
) -> None:
    name_hosts(network, 2, [*network.addresses[:2], "127.0.1.1"])
    try:
        flags = (*SMALL, "--num-workers", "2", "--output-dir", str(tmp_path / "run"))
        ends = train_on(network, [1, 2], environment, *flags)
    finally:
        name_hosts(network, 2, network.addresses)
    for status, said in ends:
        assert status == 1
        assert "error: process 1: the name of host host-2 resolves to 127.0.1.1 there" in said
    assert not (tmp_path / "run").exists()
