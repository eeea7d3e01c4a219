"""Joining a network: what may be asked for, checked, and one worker's end of it."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from rps_jax.checks import is_integer
from rps_jax.draw import Assignment, check_assignment
from rps_jax.transport.network import Network
from rps_jax.transport.packets import EVERYONE, LEAST_MTU, MOST_MTU, MTU, Sealer, check_key
from rps_jax.transport.sockets import Address, DatagramSocket


def join(
    addresses: Sequence[Address],
    worker: int,
    key: bytes | None,
    *,
    run: int = 0,
    seed: int = 0,
    assignment: Assignment = "random",
    mtu: int = MTU,
    link_rate: float | None = None,
    deadline: float = 5.0,
    start_timeout: float = 60.0,
    offload: bool = True,
    lower_effort: bool = False,
    record: bool = False,
) -> Network:
    """Joins a network of workers; a context manager.

    Needs nothing but UDP between the workers: no coordinator, no fixed set of participants. A
    worker that dies is dropped messages, and one that joins again takes over the others' model.
    Compiled steps run in the background: wait for the last (`jax.block_until_ready`) before it is
    left.

    Args:
        addresses: host and port of every worker, the same on every worker; `addresses[worker]` is
            bound here.
        worker: this worker's index.
        key: 16 to 64 secret bytes that all workers share; None accepts datagrams from anyone who
            knows `run`.
        run: number of the run, below 2^64: datagrams of other runs are not accepted. All workers
            started anew need a number that no run with this key has had, or its datagrams could be
            sent again.
        seed: decides which worker serves which block; the same on every worker.
        assignment: "random" draws anew for each exchange which worker serves which block; "fixed"
            has worker j serve block j always.
        mtu: bytes of the largest packet that the network carries whole, headers of IP included; the
            same on every worker. Larger packets cost less processor time: 1500 on plain Ethernet,
            9000 where all hosts have jumbo frames.
        link_rate: bits a second that this worker sends at the most; by default what the network is
            found to carry, see `rps_jax.transport.rate`.
        deadline: seconds to wait for the others in a phase at the most; less where phases take
            less, see `rps_jax.transport.deadline`.
        start_timeout: seconds to wait, once, for workers that have not been heard yet.
        offload: whether to use Linux's UDP_SEGMENT and UDP_GRO where there are any.
        lower_effort: whether routers may drop this traffic before all other (RFC 8622).
        record: whether to keep what arrived in each exchange, for `trace_of`.

    Raises:
        OSError: the address is taken, or none of this host's.
        ValueError: numbers that do not fit together.
    """
    for address in addresses:
        if not _is_address(address):
            raise ValueError(f"addresses: {address!r}: expected a host and a port, 1 to 65535")
    if len(addresses) > EVERYONE:
        raise ValueError(f"addresses: there are {len(addresses)}: expected {EVERYONE} at the most")
    addresses = [(host, int(port)) for host, port in addresses]
    for address, count in Counter(addresses).items():
        if count > 1:
            raise ValueError(f"addresses: {address!r} {count} times: expected one of each worker")
    if not is_integer(worker) or not 0 <= worker < len(addresses):
        expected = f"one of the {len(addresses)} addresses, from 0"
        raise ValueError(f"worker={worker!r}: expected {expected}")
    if not is_integer(run) or not 0 <= run < 1 << 64:
        raise ValueError(f"run={run!r}: expected an integer in [0, 2^64)")
    if not is_integer(seed):
        raise ValueError(f"seed={seed!r}: expected an integer")
    if not is_integer(mtu) or not LEAST_MTU <= mtu <= MOST_MTU:
        raise ValueError(f"mtu={mtu!r}: expected bytes, {LEAST_MTU} to {MOST_MTU}")
    for name, value in (
        ("link_rate", 1.0 if link_rate is None else link_rate),
        ("deadline", deadline),
        ("start_timeout", start_timeout),
    ):
        if not 0 < value < float("inf"):
            raise ValueError(f"{name}={value}: expected a positive number")
    check_assignment(assignment)
    check_key(key)
    others = [address for other, address in enumerate(addresses) if other != worker]
    sealer = Sealer(int(run), key)
    socket = DatagramSocket(
        addresses[worker],
        others,
        wanted=sealer.is_of_run,
        offload=offload,
        lower_effort=lower_effort,
    )
    return Network(
        socket,
        addresses,
        int(worker),
        sealer,
        seed=int(seed),
        assignment=assignment,
        mtu=int(mtu),
        link_rate=link_rate,
        deadline=deadline,
        start_timeout=start_timeout,
        record=record,
    )


def _is_address(address: Any) -> bool:
    match address:
        case (str(), port):
            return is_integer(port) and 0 < port < 1 << 16
    return False
