"""Who is in step with a worker, and where others are when nobody is.

Who is ahead is not always who is right: a worker whose cable is down waits for nobody and runs
ahead. It knows that it is alone, and says so in the end of each phase. Those who hear others do not
follow it; where two are who say that they are not alone, it goes to them, back if need be. Of
workers that are alone, and of two, the one that is ahead is right.
"""

import numpy as np

ALONE, HERE = 1, 2
"""The place in the end of a phase of a worker that is alone, or only listens; of others it is 0.
And that in what a worker says before its first exchange, which ends nothing."""
_EXCHANGES_ALONE = 4
"""Exchanges without anyone in step after which a worker is alone."""
_NOWHERE = -1


class Peers:
    """The others, as one worker knows them.

    Attributes:
        returned: whether this worker was alone, and has found others in this exchange who were not.
    """

    def __init__(self, num_workers: int) -> None:
        """Has heard nobody: at its start, a worker is alone.

        Args:
            num_workers: how many there are.
        """
        self.returned = False
        # For how many exchanges each was not in step, and who is in this one.
        self._apart = np.full(num_workers, _EXCHANGES_ALONE)
        self._in_step = np.zeros(num_workers, bool)
        self._never_in_step = True
        # The newest exchange of which anything was taken; and where each was found in this one not
        # to be alone, while this worker is.
        self._newest, self._found = _NOWHERE, np.full(num_workers, _NOWHERE)

    @property
    def alone(self) -> bool:
        """Whether no other is in step with this worker."""
        return bool((self._apart >= _EXCHANGES_ALONE).all()) and len(self._apart) > 1

    @property
    def meeting(self) -> int:
        """The exchange in which two others are at least who are not alone; -1 if none was found."""
        return int(np.sort(self._found)[-2]) if len(self._found) > 2 else _NOWHERE

    def next_exchange(self, *, first: bool) -> None:
        """Goes on to an exchange.

        Args:
            first: whether there was none before.
        """
        self.returned = self.meeting != _NOWHERE
        self._never_in_step &= not self._in_step.any()
        self._apart += not first
        self._apart[self._in_step | ((self._found != _NOWHERE) & self.returned)] = 0
        self._in_step[...], self._found[...] = False, _NOWHERE

    def follows(self, sources: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Returns which ends of phases lead this worker to where they are.

        Args:
            sources: `[count]`, the workers that sent them.
            places: `[count]`, whether these are alone.

        Returns:
            Bool `[count]`. Who is alone leads those who have nobody else in step.
        """
        company = self._apart < _EXCHANGES_ALONE
        others = np.count_nonzero(company) - company[sources]
        return (places != ALONE) | (others == 0)

    def are_in_step(self, sources: np.ndarray, exchange: int) -> None:
        """Notes of whom something was taken."""
        self._in_step[sources] = True
        self._newest = max(self._newest, exchange)

    def find(self, sources: np.ndarray, exchange: int, mine: int) -> bool:
        """Notes where others are who are not alone; returns whether this worker may go there.

        Args:
            sources: who they are.
            exchange: where they are.
            mine: the exchange that this worker is in.
        """
        # What it has heard of an exchange once is not to be taken again.
        back = exchange < mine - 1
        goes = exchange > self._newest if back else not self._never_in_step
        if goes and self.alone:
            self._found[sources] = np.maximum(self._found[sources], exchange)
        return goes and self.alone
