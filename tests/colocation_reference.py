"""The network once more, slow and obvious: what `simulate` with ideal transport must equal.

One event queue, one Python list a queue, every transmission an event. It knows the disciplines
that draw no random numbers.
"""

import heapq
from collections import deque
from typing import NamedTuple

from rps_jax.colocation.settings import Settings

COME, FREE = 1, 0  # A transmission that ends now makes way before what comes now.


class Packet(NamedTuple):
    """A packet, as it enters the network.

    Attributes:
        time: When, in ps.
        source: Host.
        destination: Host.
        size: Bytes.
        learning: Whether it may be dropped.
    """

    time: int
    source: int
    destination: int
    size: int
    learning: bool


def deliver(settings: Settings, packets: list[Packet]) -> list[int | None]:
    """Returns when each packet reaches its destination, in ps; None if it is dropped.

    Args:
        settings: The network and its discipline.
        packets: In order of time; those of one time enter in their order.
    """
    n, of, name = settings.num_hosts, settings.params, settings.discipline
    propagation = round(settings.propagation_us * 1_000_000)
    # Of each port: network cards, then ports of the switch.
    queues = [(deque[int](), deque[int]()) for _ in range(2 * n)]
    busy = [False] * (2 * n)
    turn, fresh = [0] * (2 * n), [True] * (2 * n)
    deficit = [[0.0, 0.0] for _ in range(2 * n)]
    tokens = [(0, of.get("policer_burst_bytes", 0.0))] * (2 * n)
    arrived: list[int | None] = [None] * len(packets)

    def waiting(port: int, queue: int) -> int:
        return sum(packets[index].size for index in queues[port][queue])

    def queue_of(port: int, packet: Packet, now: int) -> int | None:
        """Returns the queue that a packet joins; None if it is dropped."""
        if not packet.learning or name in ("fifo", "deadline"):
            return 0
        if name == "policer":
            at, held = tokens[port]
            rate = of["policer_mbps"] * 1e6 / 8 / 1e12
            held = min(of["policer_burst_bytes"], held + (now - at) * rate)
            passes = held >= packet.size
            tokens[port] = now, held - packet.size * passes
            return 0 if passes else None
        queue = 0 if name == "threshold" else 1
        limit = of["threshold_bytes"] if name == "threshold" else of["learning_buffer_bytes"]
        fits = not busy[port] or waiting(port, queue) + packet.size <= limit
        return queue if fits else None

    def next_queue(port: int) -> int:
        if name != "drr":
            return 0 if queues[port][0] else 1
        while True:
            queue = turn[port]
            if not queues[port][queue]:
                deficit[port][queue] = 0.0
            else:
                if fresh[port]:
                    deficit[port][queue] += settings.mtu_bytes * (1, of["web_weight"])[queue == 0]
                    fresh[port] = False
                size = packets[queues[port][queue][0]].size
                if size <= deficit[port][queue]:
                    deficit[port][queue] -= size
                    return queue
            turn[port], fresh[port] = 1 - queue, True

    def start(port: int, now: int) -> None:
        """Starts a transmission, if anything waits that is not late."""
        while not busy[port] and (queues[port][0] or queues[port][1]):
            transmit(port, queues[port][next_queue(port)].popleft(), now)

    def transmit(port: int, index: int, now: int) -> None:
        packet = packets[index]
        end = now + packet.size * settings.ps_per_byte
        late = name == "deadline" and packet.learning
        if late and end + propagation > packet.time + round(of["deadline_ms"] * 1e9):
            return
        busy[port] = True
        heapq.heappush(events, (end, FREE, port, 0))
        if port < n:
            heapq.heappush(events, (end + propagation, COME, n + packet.destination, index))
        else:
            arrived[index] = end + propagation

    events = [(packet.time, COME, packet.source, i) for i, packet in enumerate(packets)]
    heapq.heapify(events)
    while events:
        now, what, port, index = heapq.heappop(events)
        if what == FREE:
            busy[port] = False
            start(port, now)
            continue
        queue = queue_of(port, packets[index], now)
        if queue is not None and not busy[port]:
            transmit(port, index, now)
        elif queue is not None:
            queues[port][queue].append(index)
    return arrived
