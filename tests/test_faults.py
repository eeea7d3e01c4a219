"""Real trainings of two processes, and what happens when something dies."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from run_files import assert_same_state, read_metrics, reproducible

import launch.train
from data import Dataset
from launch.cli.command_line import UsageError
from launch.config import TrainConfig
from launch.distributed import consistency
from launch.distributed.consistency import check_consistency, check_shared, digest_of
from launch.distributed.ports import free_port

ROOT = Path(__file__).parents[1]

# Twenty-two steps an epoch; enough epochs for a fault to be in time.
SMALL = ("--preset", "linear", "--num-workers", "2", "--batch-size", "32", "--epochs", "5")
SMALL += ("--checkpoint-every", "1")
LAST_STEP = 110
LOCAL = ("--processes", "2", "--heartbeat-timeout", "15")


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    """Of processes that compile as those of users do: what they lose must be made again exactly."""
    as_users = {**os.environ, "XLA_FLAGS": "", "JAX_DISABLE_MOST_OPTIMIZATIONS": "false"}
    return {**as_users, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}


class Job:
    """A running `launch.local`, and its processes."""

    def __init__(
        self, environment: dict[str, str], folder: Path, *argv: str, within: tuple[str, ...] = ()
    ) -> None:
        self.folder = folder
        command = [sys.executable, "-m", "launch.local", *argv, "--output-dir", str(folder)]
        self.launcher = subprocess.Popen(
            [*within, *command], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    def wait_for_step(self, step: int) -> None:
        """Waits until the metrics tell of a step."""
        while self.launcher.poll() is None:
            with contextlib.suppress(OSError):
                if any(line["step"] >= step for line in read_metrics(self.folder)):
                    return
            time.sleep(0.05)
        raise AssertionError(self.output())

    def processes(self) -> dict[int, int]:
        """Returns the process ids, by the number in the job."""
        found = {}
        children = Path(f"/proc/{self.launcher.pid}/task/{self.launcher.pid}/children")
        for child in children.read_text().split():
            with contextlib.suppress(OSError, ValueError):  # It has ended since.
                argv = Path(f"/proc/{child}/cmdline").read_text().split("\0")
                found[int(argv[argv.index("--process-id") + 1])] = int(child)
        return found

    def output(self) -> str:
        assert self.launcher.stdout is not None
        said = self.launcher.stdout.read().decode()
        self.launcher.wait()
        self.launcher.stdout.close()
        return said


@pytest.fixture(scope="module")
def undisturbed(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    job = Job(environment, folder, *LOCAL, "--", *SMALL)
    said = job.output()
    assert job.launcher.returncode == 0, said
    return folder


def assert_undisturbed(folder: Path, undisturbed: Path) -> None:
    """Compares two finished runs, bit for bit."""
    assert_same_state(folder, undisturbed, LAST_STEP)
    assert reproducible(folder) == reproducible(undisturbed)
    assert (folder / "curves.png").exists()


@pytest.mark.long
def test_only_process_0_speaks_and_each_has_a_log(undisturbed: Path) -> None:
    logs = {path.name: path.read_text() for path in (undisturbed / "logs").iterdir()}
    assert logs.keys() == {"process-0.log", "process-1.log"}
    assert (
        "2 workers, rps, 10% of messages dropped, on 2 x cpu in 2 processes"
        in logs["process-0.log"]
    )
    assert [x for x in logs["process-1.log"].splitlines() if not x.startswith("[Gloo]")] == []


KILLED = "was killed by SIGKILL after"
SILENT = "has sent no heartbeat for 15 s"


FAULTS = ((1, signal.SIGKILL, KILLED), (0, signal.SIGKILL, KILLED), (1, signal.SIGSTOP, SILENT))


@pytest.mark.long
def test_what_dies_or_hangs_is_named_and_restarts_lose_nothing(
    environment: dict[str, str], undisturbed: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    job = Job(environment, folder, *LOCAL, "--max-restarts", str(len(FAULTS)), "--", *SMALL)
    for epoch, (number, fault, _) in enumerate(FAULTS, 1):
        job.wait_for_step(22 * epoch)
        before = job.processes()
        os.kill(before[number], fault)
        # All are replaced, those that hang too.
        while job.launcher.poll() is None and before.items() & job.processes().items():
            time.sleep(0.05)
    said = job.output()
    assert job.launcher.returncode == 0, said
    place = -1
    for restart, (number, _, named) in enumerate(FAULTS, 1):
        for expected in (
            f"error: process {number} {named}",
            f"restart {restart} of {len(FAULTS)}, from the newest checkpoint",
        ):
            assert said.find(expected) > place, said
            place = said.find(expected)
    assert_undisturbed(folder, undisturbed)


@pytest.mark.long
def test_a_full_disk_and_a_stop_lose_nothing(
    environment: dict[str, str], undisturbed: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"

    # No file may be larger than 4 KiB, as if the disk were full: the first checkpoint is.
    small_disk = ("sh", "-c", 'ulimit -f 8; exec "$@"', "sh")
    without_cache = {**environment, "JAX_ENABLE_COMPILATION_CACHE": "false"}
    job = Job(without_cache, folder, *LOCAL, "--", *SMALL, within=small_disk)
    said = job.output()
    assert job.launcher.returncode == 1
    assert "checkpoints/22: the checkpoint cannot be written (" in said
    assert not (folder / "summary.json").exists()

    job = Job(environment, folder, *LOCAL, "--", *SMALL, "--resume")
    job.wait_for_step(66)
    job.launcher.send_signal(signal.SIGTERM)
    said = job.output()
    assert job.launcher.returncode == 128 + signal.SIGTERM, said
    assert said.count("stopped by SIGTERM at step") == 1
    assert "Traceback" not in said

    job = Job(environment, folder, *LOCAL, "--", "--resume")
    said = job.output()
    assert job.launcher.returncode == 0, said
    assert_undisturbed(folder, undisturbed)


@pytest.mark.long
def test_a_run_of_two_processes_goes_on_in_one(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch.train, "start_devices", lambda *workers: None)
    folder = tmp_path / "run"
    shutil.copytree(undisturbed, folder)
    shutil.rmtree(folder / "checkpoints" / str(LAST_STEP))
    assert launch.train.main(["--resume", "--output-dir", str(folder)]) == 0
    one, two = (read_metrics(run)[-1] for run in (folder, undisturbed))
    assert one["delivered_fraction"] == two["delivered_fraction"]
    # Twenty-two steps with another order of summation.
    assert one["train_loss"] == pytest.approx(two["train_loss"], rel=0.05)


# What is wrong before the processes work together.


def train_processes(
    environment: dict[str, str], cwd: Path, *argvs: tuple[str, ...]
) -> Iterator[tuple[int, str]]:
    """Starts processes that meet at one address; returns the status and last line of each."""
    coordinator = f"127.0.0.1:{free_port()}"
    started = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "launch.train", *SMALL, "--coordinator", coordinator),
                *("--num-processes", "2", "--output-dir", "run", *argv),
            ],
            env=environment,
            cwd=cwd,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for argv in argvs
    ]
    for process in started:
        said = process.communicate(timeout=300)[1].strip().splitlines()
        yield process.returncode, said[-1].replace(coordinator, "HOST:PORT")


@pytest.mark.parametrize("process", [0, pytest.param(1, marks=pytest.mark.long)])
def test_a_process_that_never_starts_is_named(
    environment: dict[str, str], tmp_path: Path, process: int
) -> None:
    argv = ("--process-id", str(process), "--start-timeout", "2")
    ((status, said),) = train_processes(environment, tmp_path, argv)
    assert status == 1
    assert said.startswith(
        "error: process 1 of 2 has not come to HOST:PORT within 2 s"
        if process == 0
        else "error: --coordinator HOST:PORT: expected process 0 there, found none in 2 s"
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.long
def test_other_flags_are_refused_with_the_difference_named(
    environment: dict[str, str], tmp_path: Path
) -> None:
    argvs = [("--process-id", "0"), ("--process-id", "1", "--seed", "1", "--log-every", "7")]
    for status, said in train_processes(environment, tmp_path, *argvs):
        assert status == 2
        assert said.startswith("error: process 1 on ")
        assert "has --seed 1 instead of 0, --log-every 7 instead of 50, as process 0 on" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda said: said["same"].update(jax="0.0.1"), f"jax 0.0.1 instead of {jax.__version__}"),
        (lambda said: said["same"].update(data="digits 0"), "data digits 0 instead of digits 1"),
        (lambda said: said["same"].update({"--seed": "1"}), "--seed 1 instead of 0"),
    ],
)
def test_what_differs_is_named(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], None], named: str
) -> None:
    def gather(message: Any) -> list[Any]:
        other = json.loads(json.dumps(message))
        change(other)
        return [message, other]

    monkeypatch.setattr(consistency, "_gather", gather)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "devices", lambda: [Device(0), Device(1)])
    with pytest.raises(UsageError, match=f"^process 1 on .* has {named}, as process 0 on"):
        check_consistency(TrainConfig(), "digits 1", Path("run"))


class Device:
    def __init__(self, process_index: int) -> None:
        self.process_index = process_index


def test_a_folder_that_is_not_shared_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(consistency.multihost_utils, "sync_global_devices", lambda name: None)
    monkeypatch.setattr(consistency, "_LATEST_SECONDS", 0.3)
    (tmp_path / "seen").write_text("")
    check_shared(tmp_path / "seen")
    with pytest.raises(UsageError, match=f"^--output-dir {tmp_path}: expected a folder that all"):
        check_shared(tmp_path / "unseen")


def test_all_take_the_folder_of_process_0(monkeypatch: pytest.MonkeyPatch) -> None:
    def gather(message: Any) -> list[Any]:
        return [{**message, "output_dir": "/of/process/0"}, message]

    monkeypatch.setattr(consistency, "_gather", gather)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "devices", lambda: [Device(0), Device(1)])
    assert check_consistency(TrainConfig(), "digits 1", Path("run")) == Path("/of/process/0")


def test_the_digest_of_the_data_is_of_every_label_and_of_examples_of_both_splits() -> None:
    rows = 12_000
    splits = {
        split: {"image": np.zeros((rows, 2), np.uint8), "label": np.zeros(rows, np.int32)}
        for split in ("train", "test")
    }
    dataset = Dataset("", **splits, label_key="label", num_classes=2)
    digests = [digest_of(dataset), digest_of(dataset)]
    assert digests[0] == digests[1]
    for split in splits.values():
        for key, row in (("label", 0), ("label", 1), ("label", rows - 1), ("image", 0)):
            split[key][row] += 1
            digests.append(digest_of(dataset))
    assert len(set(digests)) == len(digests) - 1
