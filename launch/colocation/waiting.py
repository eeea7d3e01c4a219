"""What a person sees while a simulation runs: a bar on a terminal, and nothing elsewhere."""

from launch.reports.bars import REMAINING, make_bar


class SecondsBar:
    """Shows how much of the simulated time has passed; a context manager."""

    def __init__(self, seconds: float, *, quiet: bool) -> None:
        """Shows that the core is being compiled or loaded.

        Args:
            seconds: To be simulated.
            quiet: Show nothing.
        """
        self._seconds = seconds
        self._bar = make_bar(
            "compiling, once", round(seconds, 3), shown=not quiet, bar_format=REMAINING
        )

    def __enter__(self) -> "SecondsBar":
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()

    def move_to(self, seconds: float) -> None:
        """Shows that so many seconds have been simulated."""
        self._bar.set_description_str("simulating", refresh=False)
        self._bar.update(min(seconds, self._seconds) - self._bar.n)
