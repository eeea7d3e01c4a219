"""What happens beside the steps of a run."""

import rps_jax as rps
from launch.trainer.schedule import Position


class Hook:
    """Is told of the steps, as every hook is, in the order of the list; does nothing by itself."""

    def begin(self) -> None:
        """Is told that everything is compiled and the first step is about to be taken."""

    def on_metrics(self, metrics: rps.StepMetrics) -> None:
        """Takes the metrics of a step, in host memory, in the order of the steps."""

    def after_step(self, at: Position, state: rps.TrainState, signal_number: int) -> None:
        """Looks at a step that has been dispatched; finished, where `at.logs` or a signal came.

        Args:
            at: The place in the run.
            state: The workers' state.
            signal_number: A signal that any process has received, the same on all; 0 for none.
        """
