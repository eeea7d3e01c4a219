"""How a web message crosses the network: TCP with selective acknowledgements, or all at once.

Every message is a connection of its own, counted in packets. The sender follows RFC 5681 (slow
start, congestion avoidance), RFC 6675 (loss recovery; of its NextSeg rules, 1 and 2), RFC 6298
(retransmission time-out; one round trip timed at once, Karn's rule, back-off) and RFC 6928 (initial
window). The receiver acknowledges every packet at once, with the first packet that it misses and
the block around what just came, as in the first block of RFC 2018.
"""

# mypy: disable-error-code="no-untyped-def"

import numpy as np

from rps_jax.colocation.compiled import inlined
from rps_jax.colocation.events import push_timer
from rps_jax.colocation.layout import (
    ACK,
    CLOSED,
    DATA,
    HANDSHAKE,
    NEVER,
    OPEN,
    RECOVERY,
    SYN,
    SYN_ACK,
    TIMED_OUT,
)
from rps_jax.colocation.pools import alloc_connection, alloc_packet, free_connection, free_packet
from rps_jax.colocation.ports import enqueue

# Flags of a packet in the scoreboard. The receiver's stays when the sender's are cleared.
IN_FLIGHT, SACKED, LOST, SENT_AGAIN, RECEIVED = (np.uint8(1 << bit) for bit in range(5))

DUPLICATES = 3
"""Packets received beyond one that is then taken for lost: DupThresh of RFC 6675."""
FIRST_TIME_OUT = 10**12
LONGEST_TIME_OUT = 60 * 10**12


@inlined
def start_message(state, message, source, destination, now):
    """A message arrives at its sender."""
    control = state.control[0]
    connections, scoreboard, timers = state.connections, state.scoreboard, state.timers
    slot = alloc_connection(control, connections)
    c = connections[slot]
    c.state = OPEN
    c.source, c.destination = source, destination
    c.message, c.arrived = message, now
    c.first_missing = c.next_new = c.in_flight = c.sacked = c.highest_sacked = c.lost = 0
    c.recovery_point = 0
    c.window = control.initial_window
    c.slow_start_threshold = 1e18
    c.smoothed_rtt, c.rtt_variation = -1.0, 0.0
    c.time_out = max(FIRST_TIME_OUT, control.min_time_out)
    c.timed_packet, c.timed_at = -1, 0
    c.expired = 0
    c.deadline, c.timer_at = NEVER, NEVER
    c.timers = c.in_network = c.received = c.expected = 0
    scoreboard[slot, :] = 0
    if control.ideal:
        c.window = control.packets_per_message
    elif control.from_sender:
        c.state = HANDSHAKE
        send_control(state, slot, SYN, now)
        set_timer(control, connections, timers, slot, now)
        return
    send_allowed(state, slot, now)


@inlined
def send_allowed(state, slot, now):
    """Sends what the window allows: first what was lost, then what is new."""
    control = state.control[0]
    connections, scoreboard, timers = state.connections, state.scoreboard, state.timers
    c = connections[slot]
    while c.in_flight < np.int64(c.window):
        if c.lost > 0:
            sequence = c.first_missing
            while not scoreboard[slot, sequence] & LOST:
                sequence += 1
        elif c.next_new < control.packets_per_message:
            sequence = c.next_new
        else:
            break
        send_data(state, slot, sequence, now)
    if c.deadline == NEVER and not control.ideal:
        set_timer(control, connections, timers, slot, now)


@inlined
def send_data(state, slot, sequence, now):
    """Sends one packet, for the first time or again."""
    control = state.control[0]
    packets, connections, scoreboard = state.packets, state.connections, state.scoreboard
    c = connections[slot]
    if sequence == c.next_new:
        c.next_new += 1
        if c.timed_packet < 0:
            c.timed_packet, c.timed_at = sequence, now
    else:
        control.retransmissions += 1
        scoreboard[slot, sequence] |= SENT_AGAIN
        if c.timed_packet == sequence:  # Whose echo it will be cannot be told: Karn's rule.
            c.timed_packet = -1
    if scoreboard[slot, sequence] & LOST:
        scoreboard[slot, sequence] &= ~LOST
        c.lost -= 1
    scoreboard[slot, sequence] |= IN_FLIGHT
    c.in_flight += 1

    index = alloc_packet(control, packets)
    packet = packets[index]
    packet.kind = DATA
    packet.owner = slot
    last = sequence == control.packets_per_message - 1
    packet.size = control.last_packet_bytes if last else control.mtu_bytes
    packet.sequence = sequence
    packet.source, packet.destination = c.source, c.destination
    packet.sent = now
    control.web_sent += 1
    c.in_network += 1
    enqueue(state, c.source, index, now)


@inlined
def send_control(state, slot, kind, now):
    """Sends the first, or the second, packet of a handshake."""
    control = state.control[0]
    packets, connections = state.packets, state.connections
    c = connections[slot]
    index = alloc_packet(control, packets)
    packet = packets[index]
    packet.kind = kind
    packet.owner = slot
    packet.size = control.ack_bytes
    source, destination = c.source, c.destination
    if kind == SYN_ACK:
        source, destination = destination, source
    elif c.timed_packet < 0 and not c.expired:
        c.timed_packet, c.timed_at = 0, now
    packet.source, packet.destination = source, destination
    packet.sent = now
    control.web_sent += 1
    c.in_network += 1
    enqueue(state, source, index, now)


@inlined
def receive(state, index, now):
    """A web packet arrives at a host."""
    control = state.control[0]
    packets, connections = state.packets, state.connections
    packet = packets[index]
    slot = packet.owner
    c = connections[slot]
    control.web_delivered += 1
    c.in_network -= 1
    if packet.kind == DATA:
        receive_data(state, index, now)
    elif packet.kind == ACK:
        if c.state != CLOSED:
            receive_ack(state, packet.sequence, packet.block_first, packet.block_end, slot, now)
        free_packet(control, packets, index)
    else:
        kind = packet.kind
        free_packet(control, packets, index)
        if kind == SYN:
            send_control(state, slot, SYN_ACK, now)
        elif c.state == HANDSHAKE:
            if c.timed_packet >= 0:
                measure_round_trip(control, c, now)
            c.state, c.expired, c.deadline = OPEN, 0, NEVER
            send_allowed(state, slot, now)
    free_connection(control, connections, slot)


@inlined
def receive_data(state, index, now):
    """The receiver takes a packet of data and turns it into its acknowledgement."""
    control = state.control[0]
    packets, connections, scoreboard = state.packets, state.connections, state.scoreboard
    packet = packets[index]
    slot, sequence = packet.owner, packet.sequence
    c = connections[slot]
    total = control.packets_per_message
    if not scoreboard[slot, sequence] & RECEIVED:
        scoreboard[slot, sequence] |= RECEIVED
        c.received += 1
        if c.received == total and not control.from_sender:
            state.completed[c.message] = now - c.arrived
    if control.ideal:
        if c.received == total:
            c.state = CLOSED
        free_packet(control, packets, index)
        return
    while c.expected < total and scoreboard[slot, c.expected] & RECEIVED:
        c.expected += 1
    first = end = 0
    if sequence > c.expected:
        first, end = sequence, sequence + 1
        while scoreboard[slot, first - 1] & RECEIVED:
            first -= 1
        while end < total and scoreboard[slot, end] & RECEIVED:
            end += 1
    packet.kind = ACK
    packet.size = control.ack_bytes
    packet.sequence = c.expected
    packet.block_first, packet.block_end = first, end
    packet.source, packet.destination = c.destination, c.source
    packet.sent = now
    control.web_sent += 1
    c.in_network += 1
    enqueue(state, c.destination, index, now)


@inlined
def receive_ack(state, expected, block_first, block_end, slot, now):
    """The sender learns what has arrived, and goes on."""
    control = state.control[0]
    connections, scoreboard, timers = state.connections, state.scoreboard, state.timers
    c = connections[slot]
    advanced = expected > c.first_missing
    acknowledge(connections, scoreboard, slot, expected, block_first, block_end)
    if advanced and c.timed_packet >= 0 and expected > c.timed_packet:
        measure_round_trip(control, c, now)

    if c.first_missing == control.packets_per_message:
        c.state, c.deadline = CLOSED, NEVER
        if control.from_sender:
            state.completed[c.message] = now - c.arrived
        return
    if c.state == OPEN and c.lost > 0:
        c.state = RECOVERY
        c.recovery_point = c.next_new
        c.slow_start_threshold = max((c.next_new - c.first_missing) / 2, 2.0)
        c.window = c.slow_start_threshold
        # The first is sent again whatever the window says.
        send_data(state, slot, c.first_missing, now)
    elif advanced:
        if c.state != OPEN and c.first_missing >= c.recovery_point:
            c.state = OPEN
        elif c.state != RECOVERY:
            slow_start = c.window < c.slow_start_threshold
            c.window += 1.0 if slow_start else 1.0 / c.window
    if advanced:
        c.expired = 0
        set_timer(control, connections, timers, slot, now)
    send_allowed(state, slot, now)


@inlined
def acknowledge(connections, scoreboard, slot, expected, block_first, block_end):
    """Notes in the scoreboard what an acknowledgement says, and what it shows to be lost."""
    c = connections[slot]
    for sequence in range(c.first_missing, expected):
        flags = scoreboard[slot, sequence]
        c.in_flight -= (flags & IN_FLIGHT) != 0
        c.sacked -= (flags & SACKED) != 0
        c.lost -= (flags & LOST) != 0
        scoreboard[slot, sequence] = RECEIVED
    c.first_missing = max(c.first_missing, expected)
    for sequence in range(max(block_first, c.first_missing), block_end):
        flags = scoreboard[slot, sequence]
        if not flags & SACKED:
            c.in_flight -= (flags & IN_FLIGHT) != 0
            c.lost -= (flags & LOST) != 0
            c.sacked += 1
            scoreboard[slot, sequence] = RECEIVED | SACKED
            c.highest_sacked = max(c.highest_sacked, sequence + 1)
    if c.sacked >= DUPLICATES:
        beyond = 0
        for sequence in range(c.highest_sacked - 1, c.first_missing - 1, -1):
            flags = scoreboard[slot, sequence]
            if flags & SACKED:
                beyond += 1
            elif beyond >= DUPLICATES and flags & IN_FLIGHT and not flags & SENT_AGAIN:
                scoreboard[slot, sequence] = (flags & ~IN_FLIGHT) | LOST
                c.in_flight -= 1
                c.lost += 1


@inlined
def measure_round_trip(control, c, now):
    """Takes a sample of the round trip and sets the time-out by it: RFC 6298."""
    sample = float(now - c.timed_at)
    c.timed_packet = -1
    if c.smoothed_rtt < 0:
        c.smoothed_rtt, c.rtt_variation = sample, sample / 2
    else:
        c.rtt_variation += (abs(c.smoothed_rtt - sample) - c.rtt_variation) / 4
        c.smoothed_rtt += (sample - c.smoothed_rtt) / 8
    time_out = np.int64(c.smoothed_rtt + 4 * c.rtt_variation)
    c.time_out = min(max(time_out, control.min_time_out), LONGEST_TIME_OUT)


@inlined
def set_timer(control, connections, timers, slot, now):
    """Starts the retransmission timer anew.

    An entry of the heap that comes before the deadline stays and is put off when it comes up, so
    that an acknowledgement costs the heap nothing.
    """
    c = connections[slot]
    c.deadline = now + c.time_out
    if c.deadline < c.timer_at:
        c.timer_at = c.deadline
        c.timers += 1
        push_timer(control, timers, c.deadline, slot)


@inlined
def timer_expires(state, slot, now):
    """An entry has left the heap of timers."""
    control = state.control[0]
    connections, timers = state.connections, state.timers
    c = connections[slot]
    c.timers -= 1
    if now == c.timer_at:
        c.timer_at = NEVER
        if c.deadline > now:
            if c.deadline < NEVER:  # It was put off.
                c.timer_at = c.deadline
                c.timers += 1
                push_timer(control, timers, c.deadline, slot)
        else:
            expire(state, slot, now)
    free_connection(control, connections, slot)


@inlined
def expire(state, slot, now):
    """The retransmission timer expires: all that is unacknowledged counts as lost."""
    control = state.control[0]
    connections, scoreboard, timers = state.connections, state.scoreboard, state.timers
    c = connections[slot]
    control.time_outs += 1
    c.time_out = min(2 * c.time_out, LONGEST_TIME_OUT)
    c.timed_packet = -1
    first = not c.expired
    c.expired = 1
    if c.state == HANDSHAKE:
        control.retransmissions += 1
        send_control(state, slot, SYN, now)
    else:
        if first:
            c.slow_start_threshold = max((c.next_new - c.first_missing) / 2, 2.0)
        c.window = 1.0
        for sequence in range(c.first_missing, c.next_new):
            flags = scoreboard[slot, sequence]
            if not flags & (SACKED | LOST):
                scoreboard[slot, sequence] = (flags & ~(IN_FLIGHT | SENT_AGAIN)) | LOST
                c.lost += 1
        c.in_flight = 0
        c.state, c.recovery_point = TIMED_OUT, c.next_new
        send_allowed(state, slot, now)
    set_timer(control, connections, timers, slot, now)
