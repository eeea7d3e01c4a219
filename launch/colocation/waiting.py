"""What a person sees while a simulation runs: a bar on a terminal, and nothing elsewhere."""

import sys

from tqdm import tqdm


class SecondsBar:
    """Shows how much of the simulated time has passed; a context manager."""

    def __init__(self, seconds: float, *, quiet: bool) -> None:
        """Shows that the core is being compiled or loaded.

        Args:
            seconds: To be simulated.
            quiet: Show nothing.
        """
        self._seconds = seconds
        self._bar = tqdm(
            total=round(seconds, 3),
            desc="compiling, once",
            dynamic_ncols=True,
            leave=False,
            disable=quiet or not sys.stderr.isatty(),
            bar_format="{desc} {bar} {remaining}",
        )

    def __enter__(self) -> "SecondsBar":
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()

    def move_to(self, seconds: float) -> None:
        """Shows that so many seconds have been simulated."""
        self._bar.set_description_str("simulating", refresh=False)
        self._bar.update(min(seconds, self._seconds) - self._bar.n)
