"""What all workers saw of the network, as a trace that the simulation replays."""

from collections.abc import Sequence

import numpy as np

from rps_jax.channels import Trace
from rps_jax.channels.channel import ALL_GATHER, REDUCE_SCATTER
from rps_jax.transport.carrier import Exchanged


def trace_of(records: Sequence[Sequence[Exchanged]]) -> Trace:
    """Returns the drops of the exchanges that every worker took part in.

    Args:
        records: `Network.records` of each worker, in the order of the workers.

    Raises:
        ValueError: they have no exchange in common.
    """
    by_number = [{seen.exchange: seen for seen in of_worker} for of_worker in records]
    common = sorted(set.intersection(*map(set, by_number))) if by_number else []
    if not common:
        raise ValueError(f"records of {len(records)} workers: expected exchanges of all of them")
    n, packets = len(records), by_number[0][common[0]].received.shape[1]
    arrived = np.zeros((len(common), 2, n, n, packets), bool)
    for iteration, number in enumerate(common):
        for worker, seen in enumerate(by_number):
            arrived[iteration, REDUCE_SCATTER, :, worker] = seen[number].received
            arrived[iteration, ALL_GATHER, :, worker] = seen[number].gathered
    shifts = np.array([by_number[0][number].shift for number in common], np.int32)
    return Trace(np.packbits(arrived, axis=-1), packets, shifts=shifts)
