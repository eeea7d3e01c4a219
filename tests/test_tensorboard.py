"""The metrics of a run as TensorBoard has them."""

import dataclasses
import json
import math
import struct
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from run_files import read_metrics
from tensorboardX.proto.event_pb2 import Event

import launch.tensorboard
from launch.config import PRESETS
from launch.trainer.run_directory import RunDirectory

Values = dict[str, dict[int, Any]]


def read_events(folder: Path) -> Values:
    """Returns what there is of each name by step; of pictures and distributions, whether."""
    found: Values = defaultdict(dict)
    (file,) = (folder / "tensorboard").iterdir()
    content, at = file.read_bytes(), 0
    while at < len(content):
        (length,) = struct.unpack_from("<Q", content, at)
        event = Event.FromString(content[at + 12 : at + 12 + length])
        for value in event.summary.value:
            scalar = value.WhichOneof("value") == "simple_value"
            found[value.tag][event.step] = value.simple_value if scalar else True
        at += 16 + length
    return found


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of two epochs and three lines, of two workers."""
    directory = RunDirectory(tmp_path / "run")
    directory.create(dataclasses.replace(PRESETS["linear"], num_workers=2))
    delivered = [[[None, 0.9], [1.0, None]]] * 2
    lists = {"delivered_by_link": delivered, "arrivals": [0, 1, 7], "bursts": [2] + [0] * 11}
    for step, ends in ((3, True), (5, False), (6, True)):
        line = {"step": step, "epoch": step / 3, "train_loss": 1 / step, "fewest_arrivals": 1}
        line |= {"delivered_fraction": 0.9, "examples_per_second": 5.0, "consensus_distance": 0.1}
        directory.append(line | (lists | {"distances": [0.1, 0.2]} if ends else {}))
    directory.summary.write_text("{}")
    return directory.path


def test_every_number_is_a_scalar_and_every_list_a_picture(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch.tensorboard.main(["--output-dir", str(run)]) == 0
    assert f"tensorboard --logdir {run / 'tensorboard'}\n" in capsys.readouterr().out
    events, lines = read_events(run), read_metrics(run)
    for line in lines:
        for name, value in line.items():
            if name == "step":
                continue
            said = events[name][line["step"]]
            assert said is True if isinstance(value, list) else said == pytest.approx(value)
    ends = {line["step"] for line in lines if "distances" in line}
    for name in ("delivered_by_link", "arrivals", "bursts", "distances"):
        assert set(events[name]) == ends

    # Again, it is the same; and lines that a resumed run has taken back are gone.
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines[:-1]))
    assert launch.tensorboard.main(["--output-dir", str(run), "--follow"]) == 0
    assert set(read_events(run)["train_loss"]) == {line["step"] for line in lines[:-1]}


def test_a_run_that_is_resized_is_followed(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = RunDirectory(run)
    directory.summary.unlink()
    last = read_metrics(run)[-1]

    def resize(seconds: float) -> None:
        del seconds
        directory.create(dataclasses.replace(PRESETS["linear"], num_workers=1))
        of_one = {"delivered_by_link": [[[None]]] * 2, "arrivals": [0, 9]}
        directory.append(last | {"step": 12} | of_one)
        directory.summary.write_text("{}")

    # That of this module alone: others sleep in threads.
    monkeypatch.setattr(launch.tensorboard, "time", SimpleNamespace(sleep=resize))
    assert launch.tensorboard.main(["--output-dir", str(run), "--follow"]) == 0
    assert set(read_events(run)["delivered_by_link"]) == {3, 6, 12}


@pytest.mark.parametrize(
    "damaged",
    [
        3,
        [math.nan],
        *(
            pytest.param(each, marks=pytest.mark.long)
            for each in ([], [None, 0.1], [[0.1], 0.2], [[[0.1]]])
        ),
    ],
)
def test_damaged_distances_are_left_out(run: Path, damaged: Any) -> None:
    first, *others = read_metrics(run)
    lines = [first | {"distances": damaged}, *others]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert launch.tensorboard.main(["--output-dir", str(run)]) == 0
    whole = {line["step"] for line in others if "distances" in line}
    assert set(read_events(run)["distances"]) - {first["step"]} == whole


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "--output-dir: expected the folder of a run"),
        (["--output-dir", "absent"], "--output-dir absent: expected the folder of a run"),
        (["--output-dir", __file__], f"--output-dir {__file__}: expected the folder of a run"),
    ],
)
def test_what_is_no_run_is_refused(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch.tensorboard.main(arguments) == 2
    assert capsys.readouterr().err.startswith(f"error: {expected}")
