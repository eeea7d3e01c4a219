"""The ResNets of the paper on CIFAR-10."""

import functools
from typing import Any

from data import Dataset, cifar10
from launch.tasks.task import Preset, Task

_TRAINING = {
    "epochs": 160,
    "learning_rate": 0.1,
    "schedule": "step",
    "weight_decay": 1e-4,
    "checkpoint_every": 1,
}


def _make(dataset: Dataset, dtype: str, *, depth: int) -> Task:
    # Imported late, as in all presets: the models take a second.
    from launch.tasks.images import image_classification

    return image_classification(
        dataset,
        dtype,
        depth=depth,
        mean=(125.3, 123.0, 113.9),
        deviation=(63.0, 62.1, 66.7),
        augment=True,
    )


def _preset(depth: int, **defaults: Any) -> Preset:
    return Preset(
        defaults=_TRAINING | defaults,
        data="a folder or file of CIFAR-10",
        takes_path="maybe",
        can_download=True,
        find=lambda data_path, download: cifar10.find(data_path, download=download),
        make=functools.partial(_make, depth=depth),
    )


RESNET20 = _preset(20)
RESNET110 = _preset(110, clip_norm=5.0)
