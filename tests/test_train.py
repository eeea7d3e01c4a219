"""The command end to end: small runs, in this process where one of their own is not needed."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from run_files import assert_same_state, read_metrics, reproducible

import launch.train
import launch.trainer.setup
import rps_jax as rps
from launch.reports.progress import Progress
from launch.trainer.checkpoints import Checkpoints
from launch.trainer.recorder import Recorder
from launch.trainer.run_directory import RunDirectory
from launch.trainer.schedule import Position

ROOT = Path(__file__).parents[1]

# Eleven steps an epoch; enough epochs to be met between two of them.
SMALL = ("--preset", "linear", "--num-workers", "4", "--batch-size", "32", "--epochs", "12")
SMALL += ("--log-every", "3", "--checkpoint-every", "1")
LAST_STEP = 132


@pytest.fixture(autouse=True)
def this_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Lets the command run in a process whose devices conftest has started."""
    monkeypatch.setattr(launch.train, "start_devices", lambda *workers: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def command(*argv: str) -> list[str]:
    environment = ("env", f"PYTHONPATH={ROOT}", "JAX_PLATFORMS=cpu")
    return [*environment, sys.executable, "-m", "launch.train", *argv]


@pytest.fixture(scope="module")
def whole(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """Runs a small training without interruption; the folder, and what was said."""
    cwd = tmp_path_factory.mktemp("whole")
    argv = command(*SMALL, "--output-dir", "run")
    done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return cwd / "run", done


def test_the_folder_of_a_run(whole: tuple[Path, Any]) -> None:
    folder, _ = whole
    assert {entry.name for entry in folder.iterdir()} == {
        *("config.json", "metrics.jsonl", "summary.json", "curves.png", "checkpoints"),
        "writer.lock",
    }
    assert json.loads((folder / "config.json").read_text())["num_workers"] == 4

    lines = read_metrics(folder)
    always = {"step", "epoch", "train_loss", "consensus_distance", "delivered_fraction"}
    always |= {"examples_per_second", "wall_seconds", "bytes_sent_per_worker"}
    always |= {"smallest_distance", "largest_distance"}
    always |= {"consensus_distance_predicted", "update_spread", "update_correlation"}
    always |= {"delivered_worst_link", "fewest_arrivals", "mean_burst_length"}
    at_the_end = {"mean_model_train_loss", "test_loss", "test_accuracy", "distances"}
    at_the_end |= {"delivered_by_link", "arrivals", "bursts"}
    of_workers = {"worst_worker_test_accuracy", "best_worker_test_accuracy"}
    assert [line["step"] for line in lines] == [
        11 * epoch + step for epoch in range(12) for step in (3, 6, 9, 11)
    ]
    for line in lines:
        expected = always | (at_the_end if line["step"] % 11 == 0 else set())
        assert line.keys() == expected | (of_workers if line["step"] in (110, 132) else set())
        assert line["epoch"] == pytest.approx(line["step"] / 11, abs=1e-4)
        assert 0 < line["delivered_fraction"] <= 1
        assert line["examples_per_second"] > 0

    summary = json.loads((folder / "summary.json").read_text())
    numbers = {name: value for name, value in lines[-1].items() if not isinstance(value, list)}
    assert summary.items() >= (numbers | {"wall_seconds": summary["wall_seconds"]}).items()
    assert summary["worst_worker_test_accuracy"] <= summary["best_worker_test_accuracy"]
    # Both phases, three other workers, a quarter of the model of 65 floats, padded.
    assert summary["wall_seconds"] > 0
    assert summary["versions"].keys() >= {"python", "jax", "rps_jax"}
    assert summary["test_accuracy"] > 0.8

    with Image.open(folder / "curves.png") as picture:
        picture.load()
        assert picture.format == "PNG"
    steps = sorted(int(p.name) for p in (folder / "checkpoints").iterdir() if p.is_dir())
    assert steps == [110, 121, 132]


def test_what_is_said_away_from_a_terminal(whole: tuple[Path, Any]) -> None:
    folder, done = whole
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert sum(line.startswith("epoch ") for line in lines) == len(read_metrics(folder))
    assert lines[-1].split() == ["results", f"run{os.sep}"]


def test_a_folder_that_holds_a_run_is_refused(
    whole: tuple[Path, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = whole
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    assert launch.train.main(["--output-dir", str(folder)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: --output-dir {folder}: expected a new or empty folder")
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before


def wait_for_step(process: subprocess.Popen[str], folder: Path, step: int) -> None:
    """Returns when the metrics of a running process have come to a step."""
    while process.poll() is None:
        with contextlib.suppress(OSError, IndexError, ValueError):
            if read_metrics(folder)[-1]["step"] >= step:
                return
        time.sleep(0.01)
    raise AssertionError(f"ended before step {step}: {process.communicate()}")


@pytest.mark.long
def test_killed_stopped_damaged_and_resumed_it_ends_bit_for_bit_the_same(
    whole: tuple[Path, Any], tmp_path: Path
) -> None:
    folder = tmp_path / "a run"
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}

    killed = subprocess.Popen(command(*SMALL, "--output-dir", str(folder)), **pipes)
    wait_for_step(killed, folder, 14)
    killed.kill()
    killed.communicate()
    assert not (folder / "summary.json").exists()
    with (folder / "metrics.jsonl").open("a") as metrics:
        metrics.write('{"step": 9')

    resume = command("--resume", "--output-dir", str(folder))
    stopped = subprocess.Popen(resume, **pipes)
    wait_for_step(stopped, folder, 25)
    stopped.terminate()
    said, complained = stopped.communicate()
    assert stopped.returncode == 128 + signal.SIGTERM
    assert "resuming at step" in said
    assert complained.startswith("stopped by SIGTERM at step ")
    assert f"--resume --output-dir '{folder}'" in complained

    newest = Checkpoints(folder / "checkpoints").steps()[-1]
    assert newest > 22
    damaged = max((folder / "checkpoints" / str(newest)).rglob("*"), key=lambda p: p.stat().st_size)
    damaged.write_bytes(damaged.read_bytes()[:-1])

    done = subprocess.run(resume, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"the checkpoint of step {newest} is damaged" in done.stdout

    assert_same_state(folder, whole[0], LAST_STEP)
    assert reproducible(folder) == reproducible(whole[0])


def run(folder: Path, *argv: str) -> int:
    return launch.train.main([*argv, "--output-dir", str(folder)])


def test_a_finished_run_resumes_to_the_same_summary(
    whole: tuple[Path, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(whole[0], folder)
    (folder / "summary.json").unlink()
    assert run(folder, "--resume") == 0
    before, after = (
        json.loads((f / "summary.json").read_text()) | {"wall_seconds": 0, "devices": ""}
        for f in (whole[0], folder)
    )
    assert before == after
    assert "resuming at step 132 of 132" in capsys.readouterr().out

    (folder / "metrics.jsonl").unlink()
    assert run(folder, "--resume") == 2


def at_step(monkeypatch: pytest.MonkeyPatch, when: int, act: Any) -> None:
    """Does something in the training loop after so many steps."""
    after_step = Progress.after_step

    def patched(self: Progress, at: Position, *state_and_signal: Any) -> None:
        after_step(self, at, *state_and_signal)
        if at.step == when:
            act()

    monkeypatch.setattr(Progress, "after_step", patched)


SHORT = ("--preset", "linear", "--num-workers", "4", "--batch-size", "32", "--epochs", "2")
SHORT += ("--log-every", "4")


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the folder of a run in this process."""
    folder = tmp_path_factory.mktemp("short") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch.train, "start_devices", lambda *workers: None)
        assert run(folder, *SHORT) == 0
    return folder


def test_ctrl_c_between_two_lines_of_metrics_loses_nothing(
    short: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with monkeypatch.context() as patch:
        at_step(patch, 6, lambda: signal.raise_signal(signal.SIGINT))
        assert run(tmp_path / "stopped", *SHORT) == 128 + signal.SIGINT
    assert "stopped by SIGINT at step 8 of 22" in capsys.readouterr().err
    assert run(tmp_path / "stopped", "--resume") == 0
    assert_same_state(tmp_path / "stopped", short, 22)
    assert reproducible(tmp_path / "stopped") == reproducible(short)


def test_a_training_that_diverges_says_so_and_ends_with_status_3(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "run", *SHORT, "--learning-rate", "1e30") == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: the ")
    assert "no checkpoint yet" in line
    assert not (tmp_path / "run" / "summary.json").exists()


def test_a_training_that_diverges_keeps_its_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    on_metrics = Recorder.on_metrics
    count = iter(range(1, 100))

    def with_nan(self: Recorder, metrics: rps.StepMetrics) -> None:
        if next(count) == 15:
            metrics = metrics._replace(loss=np.float32("nan"))
        on_metrics(self, metrics)

    monkeypatch.setattr(Recorder, "on_metrics", with_nan)
    assert run(tmp_path / "run", *SHORT, "--checkpoint-every", "1") == 3
    assert "the checkpoint of step 11 is kept" in capsys.readouterr().err
    assert Checkpoints(tmp_path / "run" / "checkpoints").steps() == [11]


def test_workers_that_share_a_device_train_alike(short: Path, tmp_path: Path) -> None:
    assert run(tmp_path / "run", *SHORT, "--workers-per-device", "4") == 0
    apart, together = read_metrics(short), read_metrics(tmp_path / "run")
    for one, other in zip(apart, together, strict=True):
        assert one["delivered_fraction"] == other["delivered_fraction"]
    # Rounding differs, and grows with the steps: the first four are still alike.
    for key in ("train_loss", "consensus_distance"):
        assert apart[0][key] == pytest.approx(together[0][key], rel=0.01)


@pytest.mark.parametrize(
    ("flags", "delivered"),
    [
        (("--algorithm", "all-reduce", "--num-workers", "1", "--optimizer", "adam"), 1.0),
        *(
            pytest.param(*run, marks=pytest.mark.long)
            for run in [
                (
                    (
                        "--algorithm",
                        "gradient-averaging",
                        "--on-miss",
                        "zero",
                        "--num-workers",
                        "3",
                    ),
                    None,
                ),
                (("--algorithm", "local", "--label-skew", "0.3"), 1.0),
                (("--preset", "digits", "--dtype", "bfloat16"), None),
            ]
        ),
    ],
)
def test_every_algorithm_runs(
    tmp_path: Path, flags: tuple[str, ...], delivered: float | None
) -> None:
    assert run(tmp_path / "run", *SHORT, "--epochs", "1", *flags) == 0
    line = read_metrics(tmp_path / "run")[-1]
    if delivered is not None:
        assert line["delivered_fraction"] == delivered
    assert (line["consensus_distance"] > 0) == ("all-reduce" not in flags)


def test_lines_without_an_exchange_have_what_arrived_before(tmp_path: Path) -> None:
    flags = (*SHORT, "--epochs", "1", "--drop-rate", "0.5", "--local-steps", "8", "--log-every")
    assert run(tmp_path / "run", *flags, "3") == 0
    lines = read_metrics(tmp_path / "run")
    assert [line["step"] for line in lines] == [3, 6, 9, 11]
    known = {"delivered_fraction": 1, "delivered_worst_link": 1, "fewest_arrivals": 4}
    for name, before in known.items():
        first, second, third, last = (line[name] for line in lines)
        assert first == second == before > third == last


def write_trace(path: Path, num_hosts: int = 4, packets: int = 5, seed: int = 0) -> np.ndarray:
    """Writes a trace of three iterations; the share of messages that arrive in each."""
    shape = (3, 2, num_hosts, num_hosts, packets)
    itself = np.eye(num_hosts, dtype=bool)[:, :, None]
    arrived = (np.random.default_rng(seed).random(shape) < 0.7) | itself
    np.savez_compressed(
        path,
        arrived=np.packbits(arrived, axis=-1),
        packets=np.int64(packets),
        format=np.int64(1),
        description=np.array("{}"),
    )
    return arrived[:, :, ~itself[:, :, 0]].mean((1, 2, 3))


@pytest.mark.long
def test_a_trace_and_its_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    drops, moved = tmp_path / "drops.npz", tmp_path / "moved.npz"
    arrive = write_trace(drops)
    flags = (*SHORT, "--log-every", "1", "--channel", "trace", "--trace", str(drops))

    monkeypatch.setenv("COLUMNS", "40")
    assert run(tmp_path / "whole", *flags) == 0
    said = "\n4 workers, rps, drops as in drops.npz,\n  on 4 x cpu\n"
    assert said in capsys.readouterr().out
    delivered = [line["delivered_fraction"] for line in read_metrics(tmp_path / "whole")]
    np.testing.assert_allclose(delivered, np.resize(arrive, 22), rtol=1e-6)
    assert json.loads((tmp_path / "whole" / "config.json").read_text())["drop_rate"] is None

    with monkeypatch.context() as patch:
        at_step(patch, 6, lambda: signal.raise_signal(signal.SIGINT))
        assert run(tmp_path / "run", *flags) == 128 + signal.SIGINT
    drops.rename(moved)
    capsys.readouterr()
    assert run(tmp_path / "run", "--resume") == 2
    assert f"--trace {drops}: expected a file that can be read" in capsys.readouterr().err
    write_trace(drops, seed=1)
    assert run(tmp_path / "run", "--resume") == 2
    began = f"expected the trace that the run in {tmp_path / 'run'} began with"
    assert capsys.readouterr().err == f"error: --trace {drops}: {began}\n"
    assert run(tmp_path / "run", "--resume", "--trace", str(moved)) == 0
    assert_same_state(tmp_path / "run", tmp_path / "whole", 22)
    assert reproducible(tmp_path / "run") == reproducible(tmp_path / "whole")


def test_gradients_are_dropped_as_in_the_trace(tmp_path: Path) -> None:
    arrive = write_trace(tmp_path / "drops.npz")
    flags = (*SHORT, "--log-every", "1", "--epochs", "1", "--algorithm", "gradient-averaging")
    flags += ("--channel", "trace", "--trace", str(tmp_path / "drops.npz"))
    assert run(tmp_path / "run", *flags) == 0
    delivered = [line["delivered_fraction"] for line in read_metrics(tmp_path / "run")]
    np.testing.assert_allclose(delivered, np.resize(arrive, 11), rtol=1e-6)


@pytest.mark.parametrize(
    ("trace", "expected"),
    [
        ({"num_hosts": 3}, "--num-workers 4: expected 3, the number of hosts in --trace {}"),
        ({"packets": 10**5}, "--trace {}: expected at most "),
    ],
)
def test_a_trace_that_does_not_fit_the_run_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], trace: dict[str, int], expected: str
) -> None:
    drops = tmp_path / "drops.npz"
    write_trace(drops, **trace)
    assert run(tmp_path / "run", *SHORT, "--channel", "trace", "--trace", str(drops)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {expected.format(drops)}")
    assert not (tmp_path / "run").exists()


def write_atis(folder: Path, cities: str) -> None:
    """Writes a tiny corpus in which every word of `cities` is a place."""
    for split, repeats in (("train", 12), ("test", 3)):
        (folder / split).mkdir(parents=True, exist_ok=True)
        rows = [(f"fly to {city} now", "O O B-city O", "flight") for city in cities.split()]
        rows += [(f"what is {city}", "O O B-city", "city") for city in cities.split()]
        for name, lines in zip(
            ("seq.in", "seq.out", "label"), zip(*rows, strict=True), strict=True
        ):
            (folder / split / name).write_text("".join(f"{x}\n" for x in lines * repeats))


@pytest.mark.long
def test_atis_and_its_resume_on_other_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_atis(tmp_path / "atis", "rome oslo")
    flags = ("--preset", "atis-lstm", "--data-path", str(tmp_path / "atis"), "--num-workers", "2")
    with monkeypatch.context() as patch:
        at_step(patch, 7, lambda: signal.raise_signal(signal.SIGTERM))
        assert run(tmp_path / "run", *flags, "--log-every", "1") == 128 + signal.SIGTERM
    lines = read_metrics(tmp_path / "run")
    assert 0 <= lines[5]["test_slot_f1"] <= 1

    capsys.readouterr()
    write_atis(tmp_path / "atis", "rome oslo bern")
    assert run(tmp_path / "run", "--resume") == 2
    assert capsys.readouterr().err.startswith("error: --data-path: expected the data that")

    write_atis(tmp_path / "atis", "rome oslo")
    assert run(tmp_path / "run", "--resume") == 0
    assert "test slot f1" in capsys.readouterr().out


@pytest.mark.long
def test_cifar_from_a_tree_of_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 2, 8, 8, 8, 3), np.uint8)
    for i, split in enumerate(("train", "test")):
        for j, cls in enumerate(("cat", "dog")):
            folder = tmp_path / "images" / split / cls
            folder.mkdir(parents=True)
            for k in range(8):
                Image.fromarray(pixels[i, j, k]).save(folder / f"{k}.png")
    flags = ("--preset", "cifar10-resnet20", "--data-path", str(tmp_path / "images"))
    flags += ("--num-workers", "2", "--batch-size", "4", "--epochs", "1")
    assert run(tmp_path / "run", *flags) == 0
    assert "ResNet-20 on images of images, 16 training examples" in capsys.readouterr().out
    assert "test_accuracy" in read_metrics(tmp_path / "run")[-1]


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (("--num-workers", "1443"), "--num-workers 1443: expected at most 1442"),
        (("--batch-size", "91"), "--batch-size 91: expected at most 90"),
        (("--epochs", "1000000000000"), "--epochs 1000000000000: expected at most"),
        (("--preset", "atis-lstm", "--data-path", "absent"), "--data-path absent: found no such"),
        (("--preset", "cifar10-resnet20", "--data-path", "absent"), "--data-path absent: found no"),
        (("--channel", "trace", "--trace", "file"), "--trace file: expected a trace, an .npz"),
        (("--output-dir", "file"), "--output-dir file: expected a folder that can be written"),
        (("--output-dir", "file/run"), "--output-dir file/run: expected a folder that can"),
        (("--profile", "file"), "--profile file: expected a folder that can be written"),
    ],
)
def test_what_the_data_or_the_disk_rule_out_is_refused_in_one_line(
    argv: tuple[str, ...],
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    assert launch.train.main(list(argv)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {expected}")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_disk_that_fails_ends_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RunDirectory, "append", full)
    assert run(tmp_path / "run", *SHORT) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "No space left on device" in line


def test_ctrl_c_before_the_training_is_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(launch.trainer.setup, "deal", interrupt)
    assert run(tmp_path / "run", *SHORT) == 128 + signal.SIGINT
    assert capsys.readouterr().err == "error: interrupted\n"
    assert not (tmp_path / "run").exists()
