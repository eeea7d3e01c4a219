"""A run's folder has one writer, and nothing that is damaged in it is a traceback."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from launch.cli.command_line import CommandError, UsageError
from launch.config import TrainConfig, parse, stored_config
from launch.config_file import CONFIG_FILE
from launch.json_objects import write_json
from launch.trainer.checkpoints import CheckpointError, Checkpoints
from launch.trainer.preemption import StopSignals
from launch.trainer.run_directory import RunDirectory
from launch.trainer.writing import only_writer

ROOT = Path(__file__).parents[1]

# Holds the folder until its input ends.
HOLD = """
import sys
from pathlib import Path
from launch.cli.commands import exit_status
from launch.trainer.writing import only_writer

def hold():
    with only_writer(Path(sys.argv[1])):
        print("held", flush=True)
        sys.stdin.read()
    return 0

sys.exit(exit_status(hold))
"""


def hold(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)],
        cwd=ROOT, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def test_a_second_writer_is_refused_and_a_dead_one_leaves_nothing_behind(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    first = hold(folder)
    assert first.stdout is not None
    assert first.stdout.readline() == "held\n"
    expected = f"--output-dir {folder}: expected a folder with one writer, found process"
    with pytest.raises(UsageError, match=f"^{expected} {first.pid} of "), only_writer(folder):
        pass
    first.kill()
    first.communicate()
    with only_writer(folder):
        second = hold(folder)
        said = second.communicate()[1]
    assert second.returncode == 2
    assert said.startswith(f"error: {expected} {os.getpid()} of ")
    assert said.count("\n") == 1


@pytest.mark.long
def test_of_many_that_start_at_once_one_writes(tmp_path: Path) -> None:
    started = [hold(tmp_path / "run") for _ in range(4)]
    said = [process.stdout.readline() for process in started if process.stdout is not None]
    assert sorted(said) == ["", "", "", "held\n"]
    for process in started:
        process.communicate()
    assert sorted(process.returncode for process in started) == [0, 2, 2, 2]


LINE = {"step": 1, "epoch": 0.5, "train_loss": 1.0, "delivered_fraction": 0.9} | {
    "examples_per_second": 10.0,
    "consensus_distance": 0.1,
}


@pytest.mark.parametrize(
    "damaged",
    [b"5", b"{}", b"null", b"[" * 100_000, b"\xff", b'{"step": "1"}', b'{"step": 1, "epo']
    + [json.dumps(LINE | change).encode() for change in ({"epoch": None}, {"step": 1.5})]
    + [json.dumps(LINE | change).encode() for change in ({"step": 2**63}, {"loss": 10**400})],
)
def test_a_damaged_line_of_metrics_is_named_and_the_others_are_kept(
    tmp_path: Path, damaged: bytes
) -> None:
    folder = RunDirectory(tmp_path)
    lines = [LINE, LINE | {"step": 2, "epoch": 1.0}, LINE | {"step": 3, "epoch": 1.5}]
    first, *others = [json.dumps(line).encode() for line in lines]
    folder.metrics.write_bytes(b"\n".join([first, damaged, *others]) + b"\n")
    reports: list[str] = []
    folder.rewind(1.0, reports.append)
    assert folder.read_metrics() == lines[:2]
    (report,) = reports
    assert report.startswith("line 2 of metrics.jsonl is damaged (")
    assert "\n" not in report


@pytest.mark.parametrize("content", [b"[]", b"null", b"{}", b"\xff", b"[" * 100_000, None])
def test_a_run_whose_summary_is_damaged_is_not_done(tmp_path: Path, content: bytes | None) -> None:
    folder = RunDirectory(tmp_path)
    folder.summary.mkdir() if content is None else folder.summary.write_bytes(content)
    assert not folder.is_done
    with pytest.raises(UsageError, match=f"^{folder.summary}: "):
        folder.read_summary()


def test_a_folder_that_was_cleared_is_free_for_a_new_run(tmp_path: Path) -> None:
    folder = RunDirectory(tmp_path)
    for ended in (True, False):
        folder.check_is_free()
        folder.create(TrainConfig())
        if ended:
            folder.append(LINE)
            for path in (folder.summary, folder.curves):
                path.write_text("")
            Checkpoints(folder.checkpoints).save(1, {"params": np.arange(5.0)}, {})
        with pytest.raises(UsageError, match=r"expected a new or empty folder, found the config"):
            folder.check_is_free()
        folder.clear()
    folder.check_is_free()


def damage(path: Path, rng: np.random.Generator) -> None:
    """Does to a file, or in its place, what a disk, an editor or a hurry may do."""
    content = bytearray(path.read_bytes())
    kind = rng.integers(6)
    if kind == 0:
        path.write_bytes(content[: rng.integers(len(content) + 1)])
    elif kind == 1 and content:
        content[rng.integers(len(content))] ^= 1 << rng.integers(8)
        path.write_bytes(content)
    elif kind == 2:
        values = (b"[]", b"null", b"5", b"{}", b'""', b"\xff\xfe", b"[" * 100_000, b"9" * 5_000)
        path.write_bytes(values[rng.integers(len(values))])
    elif kind == 3:
        text = content.decode(errors="replace")
        for old, new in (('"', ""), ("1", "true"), ("0", "null"), (":", ": {}, "), ("s", "²")):
            if rng.integers(2):
                text = text.replace(old, new, 1)
        path.write_text(text)
    elif kind == 4:
        path.unlink()
        path.mkdir()
    else:
        path.unlink()


def test_no_damage_to_any_file_of_a_run_is_a_traceback(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    folder = RunDirectory(whole)
    folder.create(TrainConfig())
    for step in (1, 2, 3):
        folder.append(LINE | {"step": step})
    write_json(folder.summary, LINE | {"score": "test_accuracy", "test_accuracy": 0.5})
    state = {"params": jnp.arange(5.0)}
    for step in (2, 3):
        Checkpoints(folder.checkpoints).save(step, state, {"num_workers": 4})
    files = sorted(path for path in whole.rglob("*") if path.is_file())

    rng = np.random.default_rng(0)
    for trial in range(60):
        copy = tmp_path / str(trial)
        shutil.copytree(whole, copy)
        damage(copy / files[trial % len(files)].relative_to(whole), rng)
        strange = copy / "checkpoints" / ("²", "7", "4.orbax-checkpoint-tmp", "007")[trial % 4]
        strange.mkdir() if trial % 8 < 4 else strange.write_text("")
        reports: list[str] = []
        folder = RunDirectory(copy)
        for read, *arguments in (
            (stored_config, copy),
            (folder.read_metrics,),
            (folder.read_summary,),
            (folder.rewind, 1.0, reports.append),
        ):
            try:
                read(*arguments)
            except UsageError as error:
                reports.append(error.report())
        checkpoints = Checkpoints(
            folder.checkpoints, holds=lambda values: values.get("num_workers") == 4
        )
        saved = checkpoints.newest(reports.append)
        assert saved is not None
        restored = checkpoints.restore(saved.step, state)
        np.testing.assert_array_equal(restored["params"], state["params"])
        assert not any("\n" in report or "Traceback" in report for report in reports)


# Signals.


def test_two_signals_at_once_are_one_request(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopSignals() as signals:
        for _ in range(3):
            signal.raise_signal(signal.SIGTERM)
        assert signals.first == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_later_signal_ends_at_once() -> None:
    program = """
import signal
from launch.trainer import preemption
preemption._SAME_REQUEST_SECONDS = 0.0
with preemption.StopSignals():
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGTERM)
    print("still here")
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True)
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, b"")


# What the machine refuses.

FULL_DISK = """
import resource, signal, sys
from pathlib import Path
import jax.numpy as jnp
import numpy as np
from launch.cli.commands import exit_status
from launch.distributed.initialize import run_and_leave
from launch.trainer.checkpoints import Checkpoints

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
random = np.random.default_rng(0)
state = [jnp.asarray(random.normal(size=100_000)) for _ in range(2)]
save = lambda: Checkpoints(Path(sys.argv[1])).save(1, state, {})
sys.exit(run_and_leave(lambda: exit_status(save)))
"""


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith(f"error: {tmp_path}/1: the checkpoint cannot be written (")


def test_a_line_of_metrics_that_cannot_be_written_names_its_file(tmp_path: Path) -> None:
    folder = RunDirectory(tmp_path)
    folder.metrics.symlink_to("/dev/full")
    with pytest.raises(CommandError, match=f"^{folder.metrics}: No space left on device$"):
        folder.append(LINE)


@pytest.fixture
def not_root() -> Iterator[None]:
    """Takes from this process, if it is root's, what root may do."""
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    yield
    if is_root:
        os.seteuid(0)


@pytest.mark.usefixtures("not_root")
def test_what_a_user_may_not_touch_is_one_line() -> None:
    with tempfile.TemporaryDirectory() as place:  # The folders of pytest belong to root.
        path = Path(place)
        folder = RunDirectory(path)
        folder.create(TrainConfig())
        folder.append(LINE)
        for name in (CONFIG_FILE, "metrics.jsonl"):
            (path / name).chmod(0)
        with pytest.raises(UsageError, match=r"config.json: .*Permission denied"):
            stored_config(path)
        with pytest.raises(UsageError, match=r"metrics.jsonl: Permission denied"):
            folder.read_metrics()
        path.chmod(0o500)
        for write in (only_writer(path).__enter__, folder.check_is_free):
            with pytest.raises(UsageError, match=f"^--output-dir {path}: .*Permission denied"):
                write()
        with pytest.raises(CheckpointError, match=r"cannot be written \(.*[Pp]ermission denied"):
            Checkpoints(folder.checkpoints).save(1, {"params": np.arange(5.0)}, {})
        path.chmod(0o700)


# Going on if begun.


def test_auto_resume_begins_a_run_and_then_goes_on_with_it(tmp_path: Path) -> None:
    argv = ["--output-dir", str(tmp_path), "--auto-resume"]
    fresh = parse([*argv, "--epochs", "3"])
    assert (fresh.resume, fresh.epochs) == (False, 3)
    RunDirectory(tmp_path).create(fresh)
    again = parse(argv)
    assert (again.resume, again.epochs) == (True, 3)
    with pytest.raises(UsageError, match=r"^--epochs 4: expected 3, as"):
        parse([*argv, "--epochs", "4"])
    with pytest.raises(UsageError, match=r"^--auto-resume requires --output-dir"):
        parse(["--auto-resume"])
