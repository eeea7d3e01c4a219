"""Packets and connections, taken from their pools and given back."""

# mypy: disable-error-code="no-untyped-def"

from rps_jax.colocation.compiled import inlined
from rps_jax.colocation.layout import CLOSED, FREE


@inlined
def take(control, packets):
    """Takes a packet from the pool, which has one."""
    index = control.free_packet
    control.free_packet = packets[index].next
    control.free_packets -= 1
    return index


@inlined
def release(control, packets, index):
    """Gives a packet back."""
    packets[index].next = control.free_packet
    control.free_packet = index
    control.free_packets += 1


@inlined
def take_connection(control, connections):
    """Takes a connection from the pool, which has one."""
    slot = control.free_connection
    control.free_connection = connections[slot].next
    control.free_connections -= 1
    return slot


@inlined
def release_connection(control, connections, slot):
    """Gives a connection back if it is closed and no packet and no timer speaks of it any more."""
    c = connections[slot]
    if c.state == CLOSED and c.timers == 0 and c.in_network == 0:
        c.state = FREE
        c.next = control.free_connection
        control.free_connection = slot
        control.free_connections += 1
