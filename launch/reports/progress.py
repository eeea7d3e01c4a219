"""What a person sees of a run: a live bar on a terminal, plain lines elsewhere."""

import sys
from typing import Any

from tqdm import tqdm


class Progress:
    """Shows where a run is; a context manager, so that the bar is put away whatever happens."""

    def __init__(
        self, epochs: int, steps_per_epoch: int, first_step: int, shown: bool = True
    ) -> None:
        """Starts the clock.

        Args:
            epochs: Of the whole run.
            steps_per_epoch: How many steps each has.
            first_step: Steps that an earlier part of the run has taken.
            shown: Whether to show anything; one process of a job does.
        """
        self._epochs, self._steps_per_epoch = epochs, steps_per_epoch
        self._measured = ""
        self._shown = shown
        self._bar = (
            tqdm(
                total=epochs * steps_per_epoch,
                initial=first_step,
                desc="compiling",
                dynamic_ncols=True,
                leave=False,
                bar_format="{desc} {bar} {remaining}",
            )
            if shown and sys.stdout.isatty() and sys.stderr.isatty()
            else None
        )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def step(self, steps: int) -> None:
        """Moves on to `steps` steps taken."""
        if self._bar is not None:
            epoch = min(steps // self._steps_per_epoch + 1, self._epochs)
            self._bar.set_description_str(
                f"epoch {epoch}/{self._epochs}{self._measured}", refresh=False
            )
            self._bar.update(steps - self._bar.n)

    def record(self, line: dict[str, Any], run: str = "") -> None:
        """Shows a line of metrics.

        Args:
            line: Of the metrics.
            run: Name of the run, where there are several.
        """
        # Short: a terminal of 80 columns holds it, with room for the bar.
        self._measured = (
            f" loss {line['train_loss']:.4f} distance {line['consensus_distance']:.2g}"
            f" delivered {100 * line['delivered_fraction']:.3g}%"
            f" {line['examples_per_second']:,.0f} ex/s"
        )
        if self._bar is not None or not self._shown:
            return
        score = line.get("test_slot_f1", line.get("test_accuracy"))
        test = "" if score is None else f" test {score:.4f}"
        of = f"{run} " if run else ""
        print(f"{of}epoch {line['epoch']:.4g}/{self._epochs}{self._measured}{test}", flush=True)
