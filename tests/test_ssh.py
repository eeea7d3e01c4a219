"""`launch.hosts`: what it would run, and trainings by a real ssh where there is a server for it."""

import contextlib
import getpass
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from run_files import read_metrics

import launch.hosts
from launch.config import parse
from launch.distributed.heartbeat import ENVIRONMENT
from launch.distributed.ports import free_port
from launch.trainer.checkpoints import Checkpoints

ROOT = Path(__file__).parents[1]
SSHD = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")

# Of launch.hosts and launch.train, on a machine that has much to do.
PATIENT = ("--heartbeat-timeout", "200")
ENDLESS = ("--preset", "linear", "--num-workers", "4", "--batch-size", "32", "--epochs", "10000")
ENDLESS += ("--start-timeout", "200")

# In the place of ssh: writes down how it was called, and gives the port that is asked for first.
RECORDER = f"""#!{sys.executable}
import json, sys
with open(sys.argv[1], "a") as calls:
    print(json.dumps(sys.argv[2:]), file=calls)
print(7000)
"""


def test_what_is_run_on_which_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder, calls, hosts = tmp_path / "ssh", tmp_path / "calls", tmp_path / "hosts"
    recorder.write_text(RECORDER)
    recorder.chmod(0o755)
    hosts.write_text("# ours\nme@fd00::1  slots=2\n\nother # not far\nlast slots=1\n")
    odd = tmp_path / "it's $HOME; a `folder`"
    odd.mkdir()
    monkeypatch.setenv("JAX_ODD", "a b; 'c'")
    argv = ["--hostfile", str(hosts), "--ssh", f"{recorder} {calls} -p 22"]
    argv += ["--python", "/their/python", "--directory", str(odd)]
    flags = ["--preset", "atis-lstm", "--data-path", str(odd), "--output-dir", str(odd / "run")]
    assert launch.hosts.main([*argv, "--", *flags]) == 0

    asked, *started = (json.loads(line) for line in calls.read_text().splitlines())
    assert asked[:3] == ["-p", "22", "me@fd00::1"]
    found = []
    for *of_ssh, place, remote in started:
        assert of_ssh == ["-p", "22"]
        go, folder, then, replace, env, *words = shlex.split(remote)
        assert (go, folder, then, replace, env) == ("cd", str(odd), "&&", "exec", "env")
        python = words.index("/their/python")
        assert {f"{ENVIRONMENT}=1", "JAX_ODD=a b; 'c'"} <= set(words[:python])
        assert words[python + 1 : python + 3] == ["-m", "launch.train"]
        config = parse(words[python + 3 :])
        assert (config.data_path, config.output_dir) == (odd, odd / "run")
        assert (config.coordinator, config.num_processes) == ("[fd00::1]:7000", 4)
        found.append((config.process_id, place))
    assert sorted(found) == [*((0, "me@fd00::1"), (1, "me@fd00::1"), (2, "other"), (3, "last"))]


@pytest.mark.long
def test_a_training_by_a_command_that_runs_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    here, hosts = tmp_path / "ssh", tmp_path / "hosts"
    here.write_text('#!/bin/sh\nexec sh -c "$2"\n')
    here.chmod(0o755)
    hosts.write_text("localhost slots=2\n")
    argv = ["--hostfile", str(hosts), "--ssh", str(here), "--directory", str(ROOT), *PATIENT]
    flags = ["--preset", "linear", "--num-workers", "4", "--epochs", "1"]
    assert launch.hosts.main([*argv, "--", *flags, "--output-dir", str(tmp_path / "run")]) == 0
    assert "[0] epoch 1/1" in capfd.readouterr().out
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["devices"] == "4 x cpu in 2 processes"


@pytest.fixture(scope="module")
def ssh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Returns an ssh command that reaches this machine, by a server and keys of its own."""
    if SSHD is None or shutil.which("ssh") is None:
        pytest.skip("sshd (Debian's openssh-server) or ssh is not installed")
    folder = tmp_path_factory.mktemp("sshd")
    for name in ("host", "mine"):
        make = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(make, check=True)
    port = free_port()
    settings = {
        "Port": port,
        "ListenAddress": "127.0.0.1",
        "HostKey": folder / "host",
        "AuthorizedKeysFile": folder / "mine.pub",
        "PidFile": "none",
        "StrictModes": "no",
        "PasswordAuthentication": "no",
        "KbdInteractiveAuthentication": "no",
        "PermitRootLogin": "yes",
    }
    text = "".join(f"{name} {value}\n" for name, value in settings.items())
    (folder / "sshd_config").write_text(text)
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # It wants this folder, and Debian makes it late.
    options = f"-F none -p {port} -i {folder / 'mine'} -o BatchMode=yes -o LogLevel=ERROR"
    options += f" -o UserKnownHostsFile={folder / 'known'} -o StrictHostKeyChecking=accept-new"
    with (folder / "log").open("w") as log:
        server = subprocess.Popen([SSHD, "-D", "-e", "-f", folder / "sshd_config"], stderr=log)
    try:
        for _ in range(100):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.1)
        said = subprocess.run(
            ["ssh", *options.split(), "localhost", "true"], capture_output=True, text=True
        )
        if said.returncode:
            pytest.skip(f"sshd lets nobody in here ({said.stderr} {(folder / 'log').read_text()})")
        yield f"ssh {options}"
    finally:
        server.kill()
        server.wait()


@pytest.fixture
def job(ssh: str, tmp_path: Path) -> Iterator[Any]:
    """Starts a long training of two processes here, by ssh; once it trains, gives its launcher."""
    hosts = tmp_path / "hosts"
    hosts.write_text(f"{getpass.getuser()}@localhost\nlocalhost\n")
    run = ["-m", "launch.hosts", "--hostfile", str(hosts), "--ssh", ssh, *PATIENT]
    flags = [*ENDLESS, "--output-dir", str(tmp_path / "run")]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    with subprocess.Popen(
        [sys.executable, *run, "--", *flags],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as launcher:  # fmt: skip
        try:
            while not (tmp_path / "run" / "metrics.jsonl").exists():
                assert launcher.poll() is None, launcher.communicate()[0]
                time.sleep(0.05)
            yield launcher
        finally:
            launcher.kill()


def processes_of(folder: Path) -> list[int]:
    """Returns the processes of this machine that work in a folder of results."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and str(folder).encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return found


def wait_until_none_of(folder: Path) -> None:
    for _ in range(600):
        if not processes_of(folder):
            return
        time.sleep(0.1)
    raise AssertionError(f"processes {processes_of(folder)} have stayed behind")


@pytest.mark.long
def test_ctrl_c_saves_a_checkpoint(job: Any, tmp_path: Path) -> None:
    assert len(processes_of(tmp_path / "run")) > 2
    job.send_signal(signal.SIGINT)
    said, _ = job.communicate(timeout=200)
    assert job.returncode == 128 + signal.SIGINT, said
    assert "[0] stopped by SIGINT at step " in said
    assert len(read_metrics(tmp_path / "run")) >= 1
    assert Checkpoints(tmp_path / "run" / "checkpoints").newest(print) is not None
    wait_until_none_of(tmp_path / "run")


@pytest.mark.long
def test_a_killed_launcher_leaves_no_process_behind(job: Any, tmp_path: Path) -> None:
    assert len(processes_of(tmp_path / "run")) > 2
    job.send_signal(signal.SIGKILL)
    wait_until_none_of(tmp_path / "run")
