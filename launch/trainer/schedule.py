"""When things happen in a run: epochs, lines of metrics, checkpoints; and its learning rate."""

from typing import NamedTuple

import optax

from launch.config import TrainConfig


class Position(NamedTuple):
    """A place in a run, after a step.

    Attributes:
        step: Steps taken.
        epoch: The same in epochs.
        epoch_ends: Whether the step was the last of its epoch.
        logs: Whether a line of metrics is due.
        saves: Whether a checkpoint is due.
        last: Whether the step was the last of the run.
    """

    step: int
    epoch: float
    epoch_ends: bool
    logs: bool
    saves: bool
    last: bool


class Schedule(NamedTuple):
    """How long a run is, and how often it logs and saves.

    Attributes:
        epochs: Passes over the training data.
        steps_per_epoch: Batches that every worker takes of its examples.
        log_every: Steps between lines of metrics; there is always one after an epoch.
        checkpoint_every: Epochs between checkpoints; there is always one after the last.
    """

    epochs: int
    steps_per_epoch: int
    log_every: int
    checkpoint_every: int

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self.epochs * self.steps_per_epoch

    def after(self, step: int) -> Position:
        """Returns the place after so many steps."""
        whole_epochs, step_of_epoch = divmod(step, self.steps_per_epoch)
        epoch_ends, last = step_of_epoch == 0, step == self.total_steps
        return Position(
            step=step,
            epoch=step / self.steps_per_epoch,
            epoch_ends=epoch_ends,
            logs=epoch_ends or step_of_epoch % self.log_every == 0,
            saves=last or (epoch_ends and whole_epochs % self.checkpoint_every == 0),
            last=last,
        )


def make_optimizer(config: TrainConfig, total_steps: int) -> optax.GradientTransformation:
    """Returns the optimizer of the local step.

    Args:
        config: Of the run.
        total_steps: Steps of the whole run.
    """
    schedules = {
        "constant": optax.constant_schedule(config.learning_rate),
        "cosine": optax.cosine_decay_schedule(config.learning_rate, total_steps),
        "step": optax.piecewise_constant_schedule(
            config.learning_rate, {total_steps // 2: 0.1, total_steps * 3 // 4: 0.1}
        ),
    }
    rate = schedules[config.schedule]
    chain = [] if config.clip_norm is None else [optax.clip_by_global_norm(config.clip_norm)]
    if config.weight_decay:
        chain.append(optax.add_decayed_weights(config.weight_decay))
    if config.optimizer == "adam":
        chain.append(optax.adam(rate))
    else:
        chain.append(optax.sgd(rate, momentum=config.momentum or None))
    return optax.chain(*chain)
