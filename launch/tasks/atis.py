"""The LSTM of the paper on ATIS."""

from pathlib import Path
from typing import TYPE_CHECKING

from data import Dataset, Source, atis
from launch.tasks.task import Preset, Task

if TYPE_CHECKING:
    from launch.config import TrainConfig


def _find(data_path: Path | None, download: bool) -> Source:
    del download
    assert data_path is not None  # as checked
    return atis.find(data_path)


def _make(dataset: Dataset, config: "TrainConfig") -> Task:
    # Imported late, as in all presets: the models take a second.
    from launch.tasks.slots import slot_filling

    return slot_filling(dataset, config.dtype)


LSTM = Preset(
    # The middle of the learning rates that `launch.reproduce search` found as good as one another.
    defaults={
        "epochs": 20,
        "batch_size": 4,
        "learning_rate": 32.0,
        "momentum": 0.0,
        "clip_norm": 1.0,
    },
    data="the folder of ATIS: train/ and test/, with seq.in, seq.out",
    takes_path="always",
    find=_find,
    make=_make,
)
