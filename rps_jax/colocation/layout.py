"""What the simulation holds in memory: arrays of records, allocated by Python, filled by the core.

Packets wait in linked lists through one pool, so that no queue needs a size of its own. Where a
pool is full, the core returns, Python doubles it, and the core goes on.

Times are int64 picoseconds, sizes int32 bytes. -1 ends a list.
"""

from typing import NamedTuple

import numpy as np

NEVER = 2**62
"""A time, or a number of bytes, that nothing reaches."""

LEARNING, DATA, ACK, SYN, SYN_ACK = range(5)
"""Kinds of packets; all but the first are the web's."""

FREE, CLOSED, HANDSHAKE, OPEN, RECOVERY, TIMED_OUT = range(6)
"""States of a connection: not in use; done; before its data; no loss; after a fast retransmission;
after a time-out."""

WEB_CLASS, LEARNING_CLASS = 0, 1
OFFERED, DROPPED, STARTED, WAITED = range(4)
"""What is counted of each class at each port, of packets that come while it is measured: those
that came, were dropped, began to be transmitted, and the picoseconds that these had waited."""

PACKET = np.dtype(
    [
        ("arrives", "i8"),  # at the far end of the link that it is on
        ("queued", "i8"),  # when it came to the port where it is
        ("sent", "i8"),  # by its first host
        ("owner", "i8"),  # its connection; the number of a learning packet
        ("next", "i4"),
        ("size", "i4"),
        ("sequence", "i4"),  # of data; of an ACK, the first packet that is still missing
        ("block_first", "i4"),  # of an ACK: the block of packets received beyond it
        ("block_end", "i4"),
        ("source", "i2"),
        ("destination", "i2"),
        ("kind", "u1"),
    ],
    align=True,
)

PORT = np.dtype(
    [
        ("free_at", "i8"),  # end of the transmission under way
        # Two queues: 0 for the web and whatever shares its queue, 1 for learning set apart.
        ("head", "i8", 2),
        ("tail", "i8", 2),
        ("waiting", "i8", 2),  # bytes in each queue, not those under transmission
        ("peak", "i8", 2),  # the most that each has held
        ("link_head", "i8"),  # packets that have been, or are being, transmitted
        ("link_tail", "i8"),
        ("turn", "i8"),  # of deficit round robin
        ("deficit", "f8", 2),
        ("tokens", "f8"),  # bytes that the policer would let pass at `tokens_at`
        ("tokens_at", "i8"),
    ],
    align=True,
)

CONNECTION = np.dtype(
    [
        ("next", "i8"),  # in the list of free connections
        ("state", "i8"),
        ("source", "i8"),
        ("destination", "i8"),
        ("message", "i8"),  # its number, in order of arrival
        ("arrived", "i8"),
        # The sender.
        ("first_missing", "i8"),  # first packet not acknowledged
        ("next_new", "i8"),  # first packet never sent
        ("in_flight", "i8"),  # "pipe" of RFC 6675
        ("sacked", "i8"),
        ("highest_sacked", "i8"),  # one beyond it
        ("lost", "i8"),  # found lost and not sent again
        ("recovery_point", "i8"),
        ("window", "f8"),
        ("slow_start_threshold", "f8"),
        ("smoothed_rtt", "f8"),  # ps; negative before the first sample
        ("rtt_variation", "f8"),
        ("time_out", "i8"),
        ("timed_packet", "i8"),  # whose round trip is measured; -1 for none
        ("timed_at", "i8"),
        ("expired", "i8"),  # the timer has, since the last new acknowledgement
        ("deadline", "i8"),  # of the retransmission timer
        ("timer_at", "i8"),  # its newest entry in the heap
        ("timers", "i8"),  # all its entries in the heap
        ("in_network", "i8"),  # its packets, of both directions
        # The receiver.
        ("received", "i8"),
        ("expected", "i8"),  # first packet not received
    ],
    align=True,
)

TIMER = np.dtype([("time", "i8"), ("connection", "i8")])

CONTROL = np.dtype(
    [
        # Settings.
        ("num_hosts", "i8"),
        ("time_bits", "i8"),  # an event is (time << time_bits) | its leaf of the tree
        ("ps_per_byte", "i8"),
        ("propagation", "i8"),
        ("mtu_bytes", "i8"),
        ("ack_bytes", "i8"),
        ("ideal", "i8"),
        ("from_sender", "i8"),
        ("packets_per_message", "i8"),
        ("last_packet_bytes", "i8"),  # of a message, on the wire
        ("initial_window", "i8"),
        ("min_time_out", "i8"),
        ("web_buffer", "i8"),
        ("discipline", "i8"),
        ("threshold", "i8"),
        ("learning_buffer", "i8"),
        ("quantum", "f8", 2),
        ("probability", "f8"),
        ("token_rate", "f8"),  # bytes a picosecond
        ("token_burst", "f8"),
        ("deadline", "i8"),
        ("seed", "u8"),
        ("measure_from", "i8"),
        ("measure_until", "i8"),
        # Free lists and the heap.
        ("packet_free_list", "i8"),
        ("free_packets", "i8"),
        ("connection_free_list", "i8"),
        ("free_connections", "i8"),
        ("num_timers", "i8"),
        ("first_timer", "i8"),
        # Where the traffic has come to.
        ("next_message", "i8"),  # in the block of messages
        ("messages", "i8"),  # all so far
        ("unmeasured", "i8"),  # those that come during the warm-up
        ("messages_until", "i8"),  # when the next block of messages is needed
        ("learning_until", "i8"),  # when the next block of learning packets is
        # Counters of the whole simulation.
        ("now", "i8"),
        ("hops", "i8"),
        ("web_sent", "i8"),
        ("web_delivered", "i8"),
        ("web_dropped", "i8"),
        ("learning_sent", "i8"),
        ("learning_delivered", "i8"),
        ("learning_dropped", "i8"),
        ("retransmissions", "i8"),
        ("time_outs", "i8"),
        # Counters of what arrives while it is measured.
        ("measured_sent", "i8"),
        ("measured_lost", "i8"),
    ],
    align=True,
)


class State(NamedTuple):
    """All that the core reads and writes.

    Attributes:
        control: `[1]` of CONTROL.
        tree: `[2 * leaves]`, the next event of each leaf and, above, the first of each pair.
        ports: `[2 * num_hosts]` of PORT: network cards, then ports of the switch.
        packets: Pool of PACKET.
        connections: Pool of CONNECTION.
        scoreboard: uint8 `[connections, packets_per_message]`, flags of `transport`.
        timers: Heap of TIMER.
        counts: float64 `[2 * num_hosts, 2, 4]`, by port, class and OFFERED ... WAITED.
        completed: int64, picoseconds that each message took, -1 if it is not complete.
        arrived: bool, whether each learning packet arrived; empty if it is not recorded.
        message_times: int64, arrivals of a block of messages.
        message_hosts: int16 `[messages, 2]`, source and destination of each.
        learning_times: int64, a block of learning packets, each host's in order of time.
        learning_numbers: int64, number of each among all learning packets.
        learning_destinations: int16.
        learning_sizes: int32.
        learning_next: int64 `[num_hosts]`, where in the block each host is.
        learning_ends: int64 `[num_hosts]`, where its part of the block ends.
    """

    control: np.ndarray
    tree: np.ndarray
    ports: np.ndarray
    packets: np.ndarray
    connections: np.ndarray
    scoreboard: np.ndarray
    timers: np.ndarray
    counts: np.ndarray
    completed: np.ndarray
    arrived: np.ndarray
    message_times: np.ndarray
    message_hosts: np.ndarray
    learning_times: np.ndarray
    learning_numbers: np.ndarray
    learning_destinations: np.ndarray
    learning_sizes: np.ndarray
    learning_next: np.ndarray
    learning_ends: np.ndarray
