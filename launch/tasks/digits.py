"""A small ResNet on scikit-learn's digits: offline, done in about a minute on two cores."""

from typing import TYPE_CHECKING

from data import Dataset, digits
from launch.tasks.task import Preset, Task

if TYPE_CHECKING:
    from launch.config import TrainConfig


def _make(dataset: Dataset, config: "TrainConfig") -> Task:
    # Imported late, as in all presets: the models take a second.
    from launch.tasks.images import image_classification

    return image_classification(dataset, config, depth=8, mean=(77.8,), deviation=(95.9,))


DIGITS = Preset(
    defaults={},
    data="the digits come with scikit-learn",
    takes_path="never",
    find=lambda data_path, download: digits.find(),
    make=_make,
    can_augment=True,
)
