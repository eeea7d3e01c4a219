"""Queueing theory's answers for a single port, which the simulation must give.

Arrivals are Poisson, at a link that takes S seconds for a packet; rho is the share of time for
which it would be busy. Waits are mean seconds from arrival at a port to the start of transmission.
Kleinrock, "Queueing Systems", volumes 1 (1975) and 2 (1976).
"""

import math
from typing import NamedTuple


class Waits(NamedTuple):
    """Mean waits of two classes at one port.

    Attributes:
        web: Seconds that a web packet waits.
        learning: Seconds that a learning packet waits.
    """

    web: float
    learning: float


def fifo(web_load: float, learning_load: float, service: float, packets: int = 1) -> Waits:
    """Returns the waits in one queue: M/D/1, whose web messages come as several packets at once.

    What waits, V, is that of M/G/1 (Pollaczek and Khinchine); a learning packet finds it before
    it, and a web packet also half of the other packets of its message.

    Args:
        web_load: rho of web packets.
        learning_load: rho of learning packets.
        service: S, seconds.
        packets: Packets of a web message.
    """
    load = web_load + learning_load
    unfinished = (web_load * packets + learning_load) * service / (2 * (1 - load))
    return Waits(web=unfinished + (packets - 1) * service / 2, learning=unfinished)


def priority(web_load: float, learning_load: float, service: float) -> Waits:
    """Returns the waits where web packets go first, but interrupt no transmission (Cobham).

    Arguments are those of `fifo`, for messages of one packet.
    """
    residual = (web_load + learning_load) * service / 2
    web = residual / (1 - web_load)
    return Waits(web=web, learning=web / (1 - web_load - learning_load))


def erlang_b(load: float) -> float:
    """Returns the share that is dropped at one server without a queue, at any load."""
    return load / (1 + load)


def md1k_drop_fraction(load: float, places: int) -> float:
    """Returns the share that M/D/1/K drops, at any load.

    By the chain of what each departure leaves behind: with pi_0 the share of departures that leave
    nobody, a share 1 - 1 / (pi_0 + rho) is dropped.

    Args:
        load: rho.
        places: K, of packets, that under transmission included.

    >>> round(md1k_drop_fraction(0.8, 1), 6) == round(erlang_b(0.8), 6)
    True
    """
    arrivals = [math.exp(-load) * load**k / math.factorial(k) for k in range(places)]
    # pi_{j+1} a_0 = pi_j - pi_0 a_j - sum_{i=1..j} pi_i a_{j-i+1}, from pi_0 = 1.
    weights = [1.0]
    for j in range(places - 1):
        rest = weights[j] - weights[0] * arrivals[j]
        rest -= sum(weights[i] * arrivals[j - i + 1] for i in range(1, j + 1))
        weights.append(rest / arrivals[0])
    return 1 - 1 / (1 / sum(weights) + load)
