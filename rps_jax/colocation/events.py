"""What happens next: a tournament between the few things that can."""

# mypy: disable-error-code="no-untyped-def"

import numpy as np

from rps_jax.colocation.compiled import inlined
from rps_jax.colocation.layout import NEVER, TIMER

NO_EVENT = np.int64(2**63 - 1)


@inlined
def schedule(control, tree, leaf, time):
    """Sets when the next event of a leaf is; of several at one time, the first leaf's is first."""
    event = NO_EVENT if time >= NEVER else (time << control.time_bits) | leaf
    node = (tree.size >> 1) + leaf
    tree[node] = event
    while node > 1:
        event = min(event, tree[node ^ 1])
        node >>= 1
        tree[node] = event


@inlined
def push_timer(control, timers, time, connection):
    """Adds an entry to the heap of timers."""
    place = control.num_timers
    control.num_timers += 1
    while place > 0:
        parent = (place - 1) >> 1
        if timers[parent].time <= time:
            break
        timers[place].time = timers[parent].time
        timers[place].connection = timers[parent].connection
        place = parent
    timers[place].time = time
    timers[place].connection = connection


@inlined
def pop_timer(control, timers):
    """Removes the first entry of the heap of timers."""
    control.num_timers -= 1
    last = control.num_timers
    time, connection = timers[last].time, timers[last].connection
    place = 0
    while True:
        child = 2 * place + 1
        if child >= last:
            break
        if child + 1 < last and timers[child + 1].time < timers[child].time:
            child += 1
        if time <= timers[child].time:
            break
        timers[place].time = timers[child].time
        timers[place].connection = timers[child].connection
        place = child
    timers[place].time = time
    timers[place].connection = connection


def new_timers(capacity: int) -> np.ndarray:
    """Returns an empty heap."""
    return np.zeros(capacity, TIMER)
