"""What all workers saw of the network, as a trace that the simulation replays."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rps_jax.channels import Trace
from rps_jax.transport.carrier import Exchanged


class Recorded(NamedTuple):
    """What one worker saw of one exchange, in few bytes.

    Attributes:
        exchange: its number.
        shift: block j was served by worker (j + shift) mod num_workers.
        packets: how many packets a message is cut into.
        arrived: uint8 `[2, num_workers, ceil(packets / 8)]`: whether a packet arrived, by phase (0
            the reduce-scatter, 1 the all-gather), source and packet, the packets packed.
    """

    exchange: int
    shift: int
    packets: int
    arrived: np.ndarray

    @classmethod
    def of(cls, seen: Exchanged) -> "Recorded":
        """Returns what is recorded of an exchange."""
        arrived = np.packbits([seen.received, seen.gathered], axis=-1)
        return cls(seen.exchange, seen.shift, seen.received.shape[1], arrived)


def trace_of(records: Sequence[Sequence[Exchanged]]) -> Trace:
    """Returns the drops of the exchanges that every worker took part in.

    Args:
        records: `Network.records` of each worker, in the order of the workers.

    Raises:
        ValueError: they have no exchange in common, or more than one pytree was exchanged.
    """
    return trace_of_recorded([list(map(Recorded.of, of_worker)) for of_worker in records])


def trace_of_recorded(records: Sequence[Sequence[Recorded]]) -> Trace:
    """Returns the same of what was recorded; see `trace_of`."""
    by_number = [_by_number(worker, of_worker) for worker, of_worker in enumerate(records)]
    common = sorted(set.intersection(*map(set, by_number))) if by_number else []
    if not common:
        raise ValueError(f"records of {len(records)} workers: expected exchanges of all of them")
    sizes = {seen[number].packets for seen in by_number for number in common}
    if len(sizes) > 1:
        raise ValueError(f"records of {sorted(sizes)} packets: expected exchanges of one pytree")
    first = by_number[0][common[0]]
    phases, n, length = first.arrived.shape
    arrived = np.zeros((len(common), phases, n, n, length), np.uint8)
    for iteration, number in enumerate(common):
        for worker, seen in enumerate(by_number):
            arrived[iteration, :, :, worker] = seen[number].arrived
    shifts = np.array([by_number[0][number].shift for number in common], np.int32)
    return Trace(arrived, first.packets, shifts=shifts)


def _by_number(worker: int, records: Sequence[Recorded]) -> dict[int, Recorded]:
    """Returns what a worker saw of each exchange.

    A worker that goes back repeats exchanges. Of one that it was in more than once, what the others
    saw goes with the last time that it heard any of them.
    """
    chosen: dict[int, Recorded] = {}
    for seen in records:
        if seen.exchange not in chosen or np.delete(seen.arrived, worker, axis=1).any():
            chosen[seen.exchange] = seen
    return chosen
