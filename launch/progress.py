"""What a person sees of a run: a live bar on a terminal, plain lines elsewhere."""

import sys
from typing import Any

from tqdm import tqdm


class Progress:
    """Shows where a run is; a context manager, so that the bar is put away whatever happens."""

    def __init__(self, total_steps: int, steps_per_epoch: int, first_step: int, score: str) -> None:
        """Starts the clock.

        Args:
            total_steps: Of the whole run.
            steps_per_epoch: For the epoch's number.
            first_step: Steps that an earlier part of the run has taken.
            score: The test metric to show.
        """
        self._steps_per_epoch = steps_per_epoch
        self._epochs = total_steps // steps_per_epoch
        self._score = score
        self._bar = (
            tqdm(
                total=total_steps,
                initial=first_step,
                dynamic_ncols=True,
                leave=False,
                bar_format="{desc} |{bar}| {postfix} {remaining} left",
            )
            if sys.stderr.isatty()
            else None
        )
        self._describe(first_step)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def step(self, steps: int) -> None:
        """Moves on to `steps` steps taken."""
        if self._bar is not None:
            self._bar.update(steps - self._bar.n)
            self._describe(steps)

    def record(self, line: dict[str, Any]) -> None:
        """Shows a line of metrics."""
        delivered, rate = line["delivered_fraction"], line["examples_per_second"]
        if self._bar is not None:
            self._bar.set_postfix_str(
                f"loss {line['train_loss']:.4f} distance {line['consensus_distance']:.2g} "
                f"{delivered:.1%} {rate:,.0f} ex/s",
                refresh=True,
            )
            return
        text = (
            f"epoch {line['epoch']:6.2f}/{self._epochs}  loss {line['train_loss']:.4f}  "
            f"distance {line['consensus_distance']:.3g}  delivered {delivered:.1%}  "
            f"{rate:,.0f} examples/s"
        )
        if self._score in line:
            text += f"  {self._score} {line[self._score]:.4f}"
        print(text, flush=True)

    def say(self, text: str) -> None:
        """Prints a line, above the bar where there is one."""
        if self._bar is not None:
            self._bar.write(text, file=sys.stdout)
        else:
            print(text, flush=True)

    def _describe(self, steps: int) -> None:
        if self._bar is not None:
            epoch = min(steps // self._steps_per_epoch + 1, self._epochs)
            self._bar.set_description_str(f"epoch {epoch}/{self._epochs}", refresh=False)
