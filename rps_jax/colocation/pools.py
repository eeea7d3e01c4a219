"""Pools of packets and connections: alloc and free."""

# mypy: disable-error-code="no-untyped-def"

from rps_jax.colocation.compiled import inlined
from rps_jax.colocation.layout import CLOSED, FREE


@inlined
def alloc_packet(control, packets):
    """Allocates a packet; the pool has one."""
    index = control.packet_free_list
    control.packet_free_list = packets[index].next
    control.free_packets -= 1
    return index


@inlined
def free_packet(control, packets, index):
    """Frees a packet."""
    packets[index].next = control.packet_free_list
    control.packet_free_list = index
    control.free_packets += 1


@inlined
def alloc_connection(control, connections):
    """Allocates a connection; the pool has one."""
    slot = control.connection_free_list
    control.connection_free_list = connections[slot].next
    control.free_connections -= 1
    return slot


@inlined
def free_connection(control, connections, slot):
    """Frees a connection if it is closed and no packet and no timer refers to it."""
    c = connections[slot]
    if c.state == CLOSED and c.timers == 0 and c.in_network == 0:
        c.state = FREE
        c.next = control.connection_free_list
        control.connection_free_list = slot
        control.free_connections += 1
