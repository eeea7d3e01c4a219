"""The event core: what happens, in order of time, until something is needed of Python.

The leaves of the tree of events are the ports' links, then the hosts as sources of learning
packets, then the messages, then the timers.
"""

# mypy: disable-error-code="no-untyped-def"

from collections.abc import Callable

import numba

from rps_jax.colocation.compiled import WITHOUT_COUNTING, inlined, source_digest
from rps_jax.colocation.events import NO_EVENT, pop_timer, schedule
from rps_jax.colocation.layout import LEARNING, NEVER
from rps_jax.colocation.pools import alloc_packet, free_packet
from rps_jax.colocation.ports import enqueue, leave_link
from rps_jax.colocation.transport import receive, start_message, timer_expires

DONE, NEED_MESSAGES, NEED_LEARNING, NEED_PACKETS, NEED_CONNECTIONS, NEED_TIMERS = range(6)
"""Why the core returns."""


@inlined
def send_learning(
    control, tree, ports, packets, connections, counts, times, numbers, destinations, sizes,
    place, host, now,
):  # fmt: skip
    """A host sends a learning packet."""
    index = alloc_packet(control, packets)
    packet = packets[index]
    packet.kind = LEARNING
    packet.owner = numbers[place]
    packet.size = sizes[place]
    packet.source, packet.destination = host, destinations[place]
    packet.sent = now
    control.learning_sent += 1
    if control.measure_from <= now < control.measure_until:
        control.measured_sent += 1
    enqueue(control, tree, ports, packets, connections, counts, host, index, now)


def _compile() -> Callable[..., int]:
    digest = source_digest()

    @numba.njit(cache=True, **WITHOUT_COUNTING)
    def run(state, until):
        _ = digest  # A part of the key under which the compiled function is kept.
        (
            controls, tree, ports, packets, connections, scoreboard, timers, counts, completed,
            arrived, message_times, message_hosts, times, numbers, destinations, sizes,
            learning_next, learning_ends,
        ) = state  # fmt: skip
        control = controls[0]
        hosts = control.num_hosts
        leaf_of_messages, leaf_of_timers = 3 * hosts, 3 * hosts + 1
        # The most that one event takes from the pools.
        burst = 2 * control.packets_per_message + 4
        for host in range(hosts):
            place = learning_next[host]
            more = place < learning_ends[host]
            following = times[place] if more else control.learning_until
            schedule(control, tree, 2 * hosts + host, following)
        more = control.next_message < message_times.size
        following = message_times[control.next_message] if more else control.messages_until
        schedule(control, tree, leaf_of_messages, following)
        while True:
            event = tree[1]
            now = event >> control.time_bits
            if event == NO_EVENT or now >= until:
                return DONE
            if control.free_packets < burst:
                return NEED_PACKETS
            if control.num_timers + 2 > timers.size:
                return NEED_TIMERS
            leaf = event & ((1 << control.time_bits) - 1)
            control.now = now
            if leaf < 2 * hosts:
                index = leave_link(control, tree, ports, packets, connections, counts, leaf, now)
                packet = packets[index]
                if leaf < hosts:
                    port = hosts + packet.destination
                    enqueue(control, tree, ports, packets, connections, counts, port, index, now)
                elif packet.kind == LEARNING:
                    control.learning_delivered += 1
                    if arrived.size > 0:
                        arrived[packet.owner] = True
                    free_packet(control, packets, index)
                else:
                    receive(
                        control, tree, ports, packets, connections, scoreboard, timers, counts,
                        completed, index, now,
                    )  # fmt: skip
            elif leaf < leaf_of_messages:
                host = leaf - 2 * hosts
                place = learning_next[host]
                if place == learning_ends[host]:
                    return NEED_LEARNING
                learning_next[host] = place + 1
                more = place + 1 < learning_ends[host]
                following = times[place + 1] if more else control.learning_until
                schedule(control, tree, leaf, following)
                send_learning(
                    control, tree, ports, packets, connections, counts, times, numbers,
                    destinations, sizes, place, host, now,
                )  # fmt: skip
            elif leaf == leaf_of_messages:
                if control.next_message == message_times.size:
                    return NEED_MESSAGES
                if control.free_connections == 0:
                    return NEED_CONNECTIONS
                message = control.next_message
                control.next_message += 1
                more = message + 1 < message_times.size
                following = message_times[message + 1] if more else control.messages_until
                schedule(control, tree, leaf, following)
                start_message(
                    control, tree, ports, packets, connections, scoreboard, timers, counts,
                    control.messages, message_hosts[message, 0], message_hosts[message, 1], now,
                )  # fmt: skip
                control.messages += 1
            else:
                slot = timers[0].connection
                pop_timer(control, timers)
                timer_expires(
                    control, tree, ports, packets, connections, scoreboard, timers, counts, slot,
                    now,
                )  # fmt: skip
            first = timers[0].time if control.num_timers > 0 else NEVER
            if first != control.first_timer:
                control.first_timer = first
                schedule(control, tree, leaf_of_timers, first)

    return run


run = _compile()
