"""What the paper trains and says of it, and what it leaves open and is chosen here."""

import dataclasses
from typing import Literal, NamedTuple, Self

from launch.cli.command_line import refuse
from launch.config import PRESETS, TrainConfig

Model = Literal["resnet20", "resnet110", "lstm"]
ScaleName = Literal["paper", "subset", "reduced"]


class Shown(NamedTuple):
    """What a figure shows.

    Attributes:
        model: What is trained.
        gradients: Whether gradients are shared too, beside models.
    """

    model: Model
    gradients: bool


FIGURES = {
    "fig4a": Shown("resnet20", gradients=False),
    "fig4b": Shown("resnet110", gradients=False),
    "fig4c": Shown("lstm", gradients=False),
    "fig5a": Shown("resnet20", gradients=True),
    "fig5b": Shown("resnet110", gradients=True),
    "fig5c": Shown("lstm", gradients=True),
}

TRAINING_LOSS: dict[Model, dict[float, float]] = {
    "resnet20": {100: 0.09, 99: 0.09, 95: 0.11, 90: 0.11},
    "resnet110": {100: 0.02, 99: 0.02, 95: 0.02, 90: 0.03},
    "lstm": {100: 0.01, 99: 0.02, 95: 0.02, 90: 0.02},
}
"""The paper's final training loss of RPS, by probability of arrival in percent."""


@dataclasses.dataclass(frozen=True)
class Scale:
    """How large a training is.

    Attributes:
        config: All that the runs of a model have in common.
        num_train: How many of the training examples are used; None for all.
        num_test: The same of the test examples.
        reduced_data: How much less that is than in the paper, for people; "" if it is all.
    """

    config: TrainConfig
    num_train: int | None = None
    num_test: int | None = None
    reduced_data: str = ""

    def with_epochs(self, epochs: int | None) -> Self:
        """Returns the scale with another number of epochs, if any is given."""
        if epochs is None:
            return self
        return dataclasses.replace(self, config=dataclasses.replace(self.config, epochs=epochs))

    @property
    def reduced(self) -> str:
        """What is less than in the paper, for people; "" if nothing is."""
        in_paper = PRESETS[self.config.preset].epochs
        epochs = f"{self.config.epochs} of {in_paper} epochs"
        fewer = self.config.epochs < in_paper
        plain = "no augmentation" * (PRESETS[self.config.preset].augment > self.config.augment)
        return ", ".join(filter(None, (self.reduced_data, plain, epochs * fewer)))


def _by_epochs(preset: str) -> TrainConfig:
    """Returns a preset whose metrics are those of whole epochs."""
    return dataclasses.replace(PRESETS[preset], checkpoint_every=1, log_every=2**30)


_RESNET20 = _by_epochs("cifar10-resnet20")
_RESNET110 = _by_epochs("cifar10-resnet110")
_LSTM = _by_epochs("atis-lstm")

SCALES: dict[tuple[Model, ScaleName], Scale] = {
    ("resnet20", "paper"): Scale(_RESNET20),
    ("resnet110", "paper"): Scale(_RESNET110),
    ("lstm", "paper"): Scale(_LSTM),
    ("resnet20", "subset"): Scale(
        dataclasses.replace(_RESNET20, epochs=60, augment=False),
        num_train=2560,
        num_test=2000,
        reduced_data="2,560 of 50,000 training images, 2,000 of 10,000 test images",
    ),
    ("resnet110", "subset"): Scale(
        dataclasses.replace(_RESNET110, epochs=60, augment=False),
        num_train=1024,
        num_test=1024,
        reduced_data="1,024 of 50,000 training images, 1,024 of 10,000 test images",
    ),
    ("resnet20", "reduced"): Scale(
        dataclasses.replace(_RESNET20, epochs=6),
        num_train=2560,
        num_test=512,
        reduced_data="2,560 of 50,000 training images, 512 of 10,000 test images",
    ),
    ("resnet110", "reduced"): Scale(
        dataclasses.replace(_RESNET110, epochs=4),
        num_train=1024,
        num_test=256,
        reduced_data="1,024 of 50,000 training images, 256 of 10,000 test images",
    ),
    ("lstm", "reduced"): Scale(dataclasses.replace(_LSTM, epochs=5)),
}


def scale_of(model: Model, name: ScaleName) -> Scale:
    """Returns a scale of a model; raises `UsageError` for one that it does not have."""
    if (model, name) not in SCALES:
        has = " or ".join(scale for of_model, scale in SCALES if of_model == model)
        refuse("scale", name, f"{has} for this model")
    return SCALES[model, name]
