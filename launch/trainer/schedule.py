"""When things happen in a run: epochs, lines of metrics, checkpoints."""

from typing import NamedTuple


class Position(NamedTuple):
    """A place in a run, after a step.

    Attributes:
        step: Steps taken.
        epoch: The same in epochs.
        epoch_ends: Whether the step was the last of its epoch.
        logs: Whether a line of metrics is due.
        saves: Whether a checkpoint is due.
        scores_workers: Whether each worker's own model is to be scored.
        last: Whether the step was the last of the run.
    """

    step: int
    epoch: float
    epoch_ends: bool
    logs: bool
    saves: bool
    scores_workers: bool
    last: bool


class Schedule(NamedTuple):
    """How long a run is, and how often it logs and saves.

    Attributes:
        epochs: Passes over the training data.
        steps_per_epoch: Batches that every worker takes of its examples.
        log_every: Steps between lines of metrics; there is always one after an epoch.
        checkpoint_every: Epochs between checkpoints; there is always one after the last.
        score_workers_every: Epochs between scores of each worker's own model; the same.
    """

    epochs: int
    steps_per_epoch: int
    log_every: int
    checkpoint_every: int
    score_workers_every: int = 1

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self.epochs * self.steps_per_epoch

    def after(self, step: int) -> Position:
        """Returns the place after so many steps."""
        whole_epochs, step_of_epoch = divmod(step, self.steps_per_epoch)
        epoch_ends, last = step_of_epoch == 0, step == self.total_steps

        def due(every: int) -> bool:
            return last or (epoch_ends and whole_epochs % every == 0)

        return Position(
            step=step,
            epoch=step / self.steps_per_epoch,
            epoch_ends=epoch_ends,
            logs=epoch_ends or step_of_epoch % self.log_every == 0,
            saves=due(self.checkpoint_every),
            scores_workers=due(self.score_workers_every),
            last=last,
        )
