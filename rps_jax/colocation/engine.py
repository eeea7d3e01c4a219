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
def send_learning(state, place, host, now):
    """A host sends a learning packet."""
    control = state.control[0]
    packets = state.packets
    index = alloc_packet(control, packets)
    packet = packets[index]
    packet.kind = LEARNING
    packet.owner = state.learning_numbers[place]
    packet.size = state.learning_sizes[place]
    packet.source, packet.destination = host, state.learning_destinations[place]
    packet.sent = now
    control.learning_sent += 1
    if control.measure_from <= now < control.measure_until:
        control.measured_sent += 1
    enqueue(state, host, index, now)


def _compile() -> Callable[..., int]:
    digest = source_digest()

    @numba.njit(cache=True, **WITHOUT_COUNTING)
    def run(state, until):
        _ = digest  # A part of the key under which the compiled function is kept.
        control = state.control[0]
        tree, packets, timers = state.tree, state.packets, state.timers
        message_times, message_hosts = state.message_times, state.message_hosts
        times = state.learning_times
        learning_next, learning_ends = state.learning_next, state.learning_ends
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
                index = leave_link(state, leaf, now)
                packet = packets[index]
                if leaf < hosts:
                    port = hosts + packet.destination
                    enqueue(state, port, index, now)
                elif packet.kind == LEARNING:
                    control.learning_delivered += 1
                    if state.arrived.size > 0:
                        state.arrived[packet.owner] = True
                    free_packet(control, packets, index)
                else:
                    receive(state, index, now)
            elif leaf < leaf_of_messages:
                host = leaf - 2 * hosts
                place = learning_next[host]
                if place == learning_ends[host]:
                    return NEED_LEARNING
                learning_next[host] = place + 1
                more = place + 1 < learning_ends[host]
                following = times[place + 1] if more else control.learning_until
                schedule(control, tree, leaf, following)
                send_learning(state, place, host, now)
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
                source, destination = message_hosts[message, 0], message_hosts[message, 1]
                start_message(state, control.messages, source, destination, now)
                control.messages += 1
            else:
                slot = timers[0].connection
                pop_timer(control, timers)
                timer_expires(state, slot, now)
            first = timers[0].time if control.num_timers > 0 else NEVER
            if first != control.first_timer:
                control.first_timer = first
                schedule(control, tree, leaf_of_timers, first)

    return run


run = _compile()
