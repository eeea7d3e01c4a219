"""The ResNets of the paper on CIFAR-10."""

import functools
from typing import TYPE_CHECKING, Any

from data import Dataset, cifar10
from launch.tasks.task import Preset, Task

if TYPE_CHECKING:
    from launch.config import TrainConfig

# As in figures 4 and 5: without momentum. The learning rates below are the best that
# `launch.reproduce search` found, on few images.
_TRAINING = {
    "epochs": 160,
    "schedule": "step",
    "momentum": 0.0,
    "augment": True,
    "checkpoint_every": 1,
}


def _make(dataset: Dataset, config: "TrainConfig", *, depth: int) -> Task:
    # Imported late, as in all presets: the models take a second.
    from launch.tasks.images import image_classification

    return image_classification(
        dataset,
        config,
        depth=depth,
        mean=(125.3, 123.0, 113.9),
        deviation=(63.0, 62.1, 66.7),
    )


def _preset(depth: int, **defaults: Any) -> Preset:
    return Preset(
        defaults=_TRAINING | defaults,
        data="a folder or file of CIFAR-10",
        takes_path="maybe",
        can_download=True,
        can_augment=True,
        find=lambda data_path, download: cifar10.find(data_path, download=download),
        make=functools.partial(_make, depth=depth),
    )


RESNET20 = _preset(20, learning_rate=0.25)
RESNET110 = _preset(110, learning_rate=0.1, clip_norm=5.0)
