"""What the paper trains and says of it, and what it leaves open and is chosen here."""

import dataclasses
from typing import Literal, Self

from launch.config import PRESETS, TrainConfig

Model = Literal["resnet20", "resnet110", "lstm"]
ScaleName = Literal["paper", "reduced"]

FIGURES: dict[str, Model] = {
    "fig4a": "resnet20",
    "fig4b": "resnet110",
    "fig4c": "lstm",
    "fig5a": "resnet20",
    "fig5b": "resnet110",
    "fig5c": "lstm",
}
"""The model of each figure; figure 4 shares models, figure 5 gradients too."""

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
        return ", ".join(filter(None, (self.reduced_data, epochs * fewer)))


def _plain(preset: str, learning_rate: float) -> TrainConfig:
    """Returns a preset without momentum and regularisation, as the paper has it in figure 5.

    Figure 4 is trained likewise, so that its runs are those that figure 5 compares with.
    """
    return dataclasses.replace(
        PRESETS[preset],
        learning_rate=learning_rate,
        momentum=0.0,
        weight_decay=0.0,
        checkpoint_every=1,
        log_every=2**30,  # Only at an epoch's end, so that its training loss is that of the epoch.
    )


# Learning rates as `launch.reproduce search` found them: for the LSTM, the middle of those that are
# as good as one another; for the ResNets, the best at the reduced scale.
_RESNET20 = _plain("cifar10-resnet20", learning_rate=0.25)
_RESNET110 = _plain("cifar10-resnet110", learning_rate=0.1)
_LSTM = _plain("atis-lstm", learning_rate=32.0)

SCALES: dict[tuple[Model, ScaleName], Scale] = {
    ("resnet20", "paper"): Scale(_RESNET20),
    ("resnet110", "paper"): Scale(_RESNET110),
    ("lstm", "paper"): Scale(_LSTM),
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
