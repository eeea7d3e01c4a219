"""What workers have seen of their exchanges, as a trace."""

import numpy as np

from rps_jax import transport


def test_an_exchange_that_a_worker_was_in_twice_is_that_with_the_others():
    """As (exchange, what was heard of the other in each phase)."""
    both, nothing, first = (True, True), (False, False), (True, False)
    said = [
        [(0, both), (1, both), (2, both), (3, both), (2, first), (3, both)],
        # It began again at 0, alone; then all went back to 2.
        [(0, both), (1, first), (0, nothing), (1, nothing), (2, nothing), (2, first), (3, both)],
    ]
    records = []
    for worker, of_worker in enumerate(said):
        records.append([])
        for number, heard in of_worker:
            masks = np.zeros((2, 2, 3), bool)
            masks[:, worker], masks[:, 1 - worker] = True, np.array(heard)[:, None]
            records[-1].append(transport.Exchanged(number, np.empty(0), *masks, shift=0))
    trace = transport.trace_of(records)
    arrived = np.unpackbits(trace.arrived, axis=-1, count=trace.packets).all(-1)
    assert [tuple(phases) for phases in arrived[:, :, 1, 0].tolist()] == [both, both, first, both]
    assert [tuple(phases) for phases in arrived[:, :, 0, 1].tolist()] == [both, first, first, both]
