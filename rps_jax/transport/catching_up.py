"""How a worker that has fallen behind takes over the others' model, before it takes part again.

Its own model is old. What it sent would pull the others back, the packets too that it has missed of
their first answer; so it listens until it has heard every packet of the model anew, and says
nothing but that it is there.
"""

import numpy as np

_MOST_EXCHANGES = 16
"""After which it takes part with what it has: a block may be served by nobody."""
_NOBODY_EXCHANGES = 2
"""The same where all others listen as well: there is no model to take over."""


class CatchingUp:
    """What a worker still has to hear; nothing at first."""

    def __init__(self) -> None:
        self._stale, self._left, self._all_listened = np.zeros((0, 0), bool), 0, 0

    @property
    def listens(self) -> bool:
        """Whether this worker listens, and sends no packets of its own."""
        return self._left > 0 and bool(self._stale.any())

    def begin(self, stale: np.ndarray) -> None:
        """Begins anew.

        Args:
            stale: bool `[num_workers, packets]`, what is to be heard, by block.
        """
        self._stale, self._left, self._all_listened = stale.copy(), _MOST_EXCHANGES, 0

    def heard(self, gathered: np.ndarray, *, all_listen: bool) -> None:
        """Takes note of an exchange.

        Args:
            gathered: bool `[num_workers, packets]`: which averages of others arrived, by block.
            all_listen: whether others were heard, and all of them listen as well.
        """
        # Another model may be exchanged by now, which this worker never had.
        same = gathered.shape == self._stale.shape
        self._stale = self._stale & ~gathered if same else np.zeros_like(gathered)
        self._all_listened = self._all_listened + 1 if all_listen else 0
        self._left = 0 if self._all_listened == _NOBODY_EXCHANGES else self._left - 1
