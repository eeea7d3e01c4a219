"""A port: packets come, wait or are dropped by the discipline, and are transmitted.

A port has no event of its own for the start of a transmission. Nothing can change which packet is
next but what comes to the port, so a port catches up with its transmissions whenever it is looked
at: when a packet comes, and when one that it has transmitted arrives at the other end of its link.
A transmission that starts at some instant is chosen before what comes at that very instant.
"""

# mypy: disable-error-code="no-untyped-def"

import numpy as np

from rps_jax.colocation.compiled import inlined
from rps_jax.colocation.events import schedule
from rps_jax.colocation.layout import (
    DROPPED,
    LEARNING,
    LEARNING_CLASS,
    NEVER,
    OFFERED,
    STARTED,
    WAITED,
    WEB_CLASS,
)
from rps_jax.colocation.pools import free_connection, free_packet

THRESHOLD, STRICT_PRIORITY, DRR, FRACTION, RANDOM, POLICER, DEADLINE = range(7)

DISCIPLINES = {
    "fifo": THRESHOLD,  # with a threshold that nothing reaches
    "threshold": THRESHOLD,
    "strict-priority": STRICT_PRIORITY,
    "drr": DRR,
    "fraction": FRACTION,
    "random": RANDOM,
    "policer": POLICER,
    "deadline": DEADLINE,
}


@inlined
def enqueue(state, where, index, now):
    """Enqueues a packet at a port: it is transmitted at once, waits, or is dropped."""
    control = state.control[0]
    tree, ports, packets, counts = state.tree, state.ports, state.packets, state.counts
    port, packet = ports[where], packets[index]
    control.hops += 1
    start_due_transmissions(state, where, now)
    idle = port.free_at <= now
    packet.queued = now
    kind = LEARNING_CLASS if packet.kind == LEARNING else WEB_CLASS
    if control.measure_from <= now < control.measure_until:
        counts[where, kind, OFFERED] += 1

    queue = admit(control, port, packet, where, idle, now)
    if queue < 0:
        drop(state, where, index)
    elif not idle:
        packet.next = -1
        if port.head[queue] < 0:
            port.head[queue] = index
        else:
            packets[port.tail[queue]].next = index
        port.tail[queue] = index
        port.waiting[queue] += packet.size
        port.peak[queue] = max(port.peak[queue], port.waiting[queue])
    else:
        transmit(state, where, index, now)
        if port.link_head == index:
            schedule(control, tree, where, packet.arrives)


@inlined
def admit(control, port, packet, where, idle, now):
    """Returns the queue that a packet joins, or -1: it is dropped."""
    if packet.kind != LEARNING:
        fits = idle or port.waiting[0] + packet.size <= control.web_buffer
        return 0 if fits else -1
    discipline = control.discipline
    if discipline == THRESHOLD:
        fits = idle or port.waiting[0] + packet.size <= control.threshold
        return 0 if fits else -1
    if discipline == RANDOM:
        # The two ports of a packet draw apart, and any two simulations alike.
        stage = 0 if where < control.num_hosts else 1
        draw = uniform(control.seed, 2 * packet.owner + stage)
        return -1 if draw < control.probability else 0
    if discipline == POLICER:
        gained = (now - port.tokens_at) * control.token_rate
        port.tokens = min(control.token_burst, port.tokens + gained)
        port.tokens_at = now
        if port.tokens < packet.size:
            return -1
        port.tokens -= packet.size
        return 0
    if discipline == DEADLINE:
        return 0
    if discipline == FRACTION and uniform(control.seed, packet.owner) >= control.probability:
        fits = idle or port.waiting[0] + packet.size <= control.web_buffer
        return 0 if fits else -1
    fits = idle or port.waiting[1] + packet.size <= control.learning_buffer
    return 1 if fits else -1


@inlined
def start_due_transmissions(state, where, now):
    """Starts every transmission that a port starts up to now."""
    control = state.control[0]
    ports, packets = state.ports, state.packets
    port = ports[where]
    while port.free_at <= now and (port.head[0] >= 0 or port.head[1] >= 0):
        queue = 0 if port.head[0] >= 0 else 1
        if control.discipline == DRR:
            queue = dequeue_turn(control, port, packets)
        index = port.head[queue]
        packet = packets[index]
        port.head[queue] = packet.next
        port.waiting[queue] -= packet.size
        transmit(state, where, index, port.free_at)


@inlined
def dequeue_turn(control, port, packets):
    """Returns the queue whose turn it is by deficit round robin; one at least has a packet.

    Shreedhar and Varghese, "Efficient Fair Queuing Using Deficit Round Robin", 1996.
    """
    while True:
        queue = port.turn & 1
        if port.head[queue] >= 0:
            if port.turn < 2:  # The queue's turn begins.
                port.deficit[queue] += control.quantum[queue]
                port.turn = queue + 2
            size = packets[port.head[queue]].size
            if size <= port.deficit[queue]:
                port.deficit[queue] -= size
                return queue
        else:
            port.deficit[queue] = 0.0
        port.turn = 1 - queue


@inlined
def transmit(state, where, index, start):
    """Puts a packet on the link, or drops it if its deadline forbids that."""
    control = state.control[0]
    ports, packets, counts = state.ports, state.packets, state.counts
    port, packet = ports[where], packets[index]
    end = start + packet.size * control.ps_per_byte
    arrives = end + control.propagation
    learning = packet.kind == LEARNING
    if learning and control.discipline == DEADLINE and arrives > packet.sent + control.deadline:
        drop(state, where, index)
        return
    if control.measure_from <= packet.queued < control.measure_until:
        kind = LEARNING_CLASS if learning else WEB_CLASS
        counts[where, kind, STARTED] += 1
        counts[where, kind, WAITED] += start - packet.queued
    port.free_at = end
    packet.arrives = arrives
    packet.next = -1
    if port.link_head < 0:
        port.link_head = index
    else:
        packets[port.link_tail].next = index
    port.link_tail = index


@inlined
def leave_link(state, where, now):
    """Takes the packet that now arrives at the far end of a port's link, and returns it."""
    control = state.control[0]
    tree, ports, packets = state.tree, state.ports, state.packets
    start_due_transmissions(state, where, now)
    port = ports[where]
    index = port.link_head
    port.link_head = packets[index].next
    following = NEVER if port.link_head < 0 else packets[port.link_head].arrives
    schedule(control, tree, where, following)
    return index


@inlined
def drop(state, where, index):
    """Drops a packet at a port."""
    control = state.control[0]
    packets, connections, counts = state.packets, state.connections, state.counts
    packet = packets[index]
    learning = packet.kind == LEARNING
    if control.measure_from <= packet.queued < control.measure_until:
        counts[where, LEARNING_CLASS if learning else WEB_CLASS, DROPPED] += 1
    if learning:
        control.learning_dropped += 1
        if control.measure_from <= packet.sent < control.measure_until:
            control.measured_lost += 1
    else:
        control.web_dropped += 1
        connections[packet.owner].in_network -= 1
        free_connection(control, connections, packet.owner)
    free_packet(control, packets, index)


@inlined
def uniform(seed, number):
    """Returns a number in [0, 1) that hangs on the seed and the number alone (SplitMix64)."""
    mixed = seed + np.uint64(number + 1) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return (mixed >> np.uint64(11)) * 2.0**-53
