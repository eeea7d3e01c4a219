"""A run whose config.json was edited is not gone on with, beyond what may change."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from run_files import saved_state

import launch.train
from launch.trainer.checkpoints import Checkpoints

SMALL = ("--preset", "linear", "--num-workers", "4", "--batch-size", "90", "--epochs", "2")


@pytest.fixture(scope="module", autouse=True)
def this_process() -> Any:
    """Lets the command run in a process whose devices conftest has started."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch.train, "start_devices", lambda *workers: None)
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the folder of a small run that is done."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert launch.train.main([*SMALL, "--output-dir", str(folder)]) == 0
    return folder


def edited(trained: Path, tmp_path: Path, **values: Any) -> Path:
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return folder


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", 1),
        ("batch_size", 30),
        ("epochs", 3),
        ("algorithm", "gradient-averaging"),
        ("drop_rate", 0.2),
        ("num_workers", 2),
        pytest.param("preset", "digits", marks=pytest.mark.long),
        ("dtype", "bfloat16"),
    ],
)
def test_what_the_checkpoint_was_not_trained_with_is_refused(
    trained: Path, tmp_path: Path, name: str, value: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = edited(trained, tmp_path, **{name: value})
    metrics = (folder / "metrics.jsonl").read_bytes()
    assert launch.train.main(["--resume", "--output-dir", str(folder)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: --{name.replace('_', '-')} {value}: expected ")
    assert line.count(f"as the checkpoint in {folder} has it") == 1
    assert (folder / "metrics.jsonl").read_bytes() == metrics


def test_checkpoints_of_an_earlier_version_are_refused(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = edited(trained, tmp_path)
    checkpoints = Checkpoints(folder / "checkpoints")
    saved = checkpoints.newest(print)
    assert saved is not None
    del saved.progress["deciding"]
    checkpoints.save(saved.step, saved_state(folder, saved.step), saved.progress)
    assert launch.train.main(["--resume", "--output-dir", str(folder)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: --output-dir {folder}: expected a run of this version")


def test_what_does_not_decide_the_result_may_be_edited(trained: Path, tmp_path: Path) -> None:
    folder = edited(trained, tmp_path, log_every=1, checkpoint_every=2)
    assert launch.train.main(["--resume", "--output-dir", str(folder)]) == 0
