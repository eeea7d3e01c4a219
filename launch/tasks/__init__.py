"""The presets: data, a model that learns them, and defaults. A new one is a module and a line."""

from typing import TYPE_CHECKING

from data import Dataset
from launch.tasks import atis, cifar10, digits, linear
from launch.tasks.task import Evaluation as Evaluation
from launch.tasks.task import Preset as Preset
from launch.tasks.task import Task as Task

if TYPE_CHECKING:
    from launch.config import TrainConfig

TASKS: dict[str, Preset] = {
    "digits": digits.DIGITS,
    "linear": linear.LINEAR,
    "cifar10-resnet20": cifar10.RESNET20,
    "cifar10-resnet110": cifar10.RESNET110,
    "atis-lstm": atis.LSTM,
}


def make_task(config: "TrainConfig", dataset: Dataset) -> Task:
    """Returns the task of a preset; it keeps no training data."""
    return TASKS[config.preset].make(dataset, config)
