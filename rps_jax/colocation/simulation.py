"""Runs a simulation: gives the core its traffic and its memory, and reads what it counted."""

import dataclasses
import math
import time
from collections.abc import Callable

import numpy as np

from rps_jax.colocation import engine, layout, ports
from rps_jax.colocation.events import NO_EVENT, new_timers
from rps_jax.colocation.layout import NEVER, State
from rps_jax.colocation.settings import PICOSECONDS, Settings
from rps_jax.colocation.traffic import (
    LearningPackets,
    Messages,
    learning_packets,
    seed_of_drops,
    web_messages,
)


@dataclasses.dataclass(frozen=True)
class Result:
    """What a simulation measured.

    Of messages and learning packets that come between the warm-up and the end of the duration,
    unless it says otherwise. A packet-hop is a packet that comes to a queue, and is transmitted or
    dropped there.

    Attributes:
        completion_ms: float64 `[messages]`, time that each message took, in order of arrival; nan
            if it is not complete when the simulation ends.
        learning_sent: Learning packets sent.
        learning_dropped: Those of them that were dropped.
        counts: float64 `[2 * num_hosts, 2, 4]`: at each port (network cards, then the switch's), of
            web and learning, packets that came, were dropped, began to be transmitted, and the sum
            of seconds that these had waited.
        peak_bytes: int64 `[2 * num_hosts, 2]`: the most that waited at each port in the queue of
            the web, and in that which learning has to itself under some disciplines; of the whole
            simulation.
        totals: Totals of the whole simulation: packets sent, delivered, dropped and still under
            way, of web and of learning; retransmissions; time-outs.
        packet_hops: Packet-hops of the whole simulation.
        wall_seconds: Seconds that the simulation took; compiling the core, once, is not counted.
        arrived: bool `[iterations, 2, num_hosts, num_hosts, packets]`, which packets of each chunk
            arrived, where that was to be recorded: iteration, phase (0 reduce-scatter, 1
            all-gather), source, destination, packet. Only iterations that lie within the duration.
    """

    completion_ms: np.ndarray
    learning_sent: int
    learning_dropped: int
    counts: np.ndarray
    peak_bytes: np.ndarray
    totals: dict[str, int]
    packet_hops: int
    wall_seconds: float
    arrived: np.ndarray | None = None

    def summary(self) -> dict[str, float | int | None]:
        """Returns the numbers that matter, by name; None where there is nothing to measure."""
        taken = self.completion_ms[~np.isnan(self.completion_ms)]
        drop_fraction = self.learning_dropped / self.learning_sent if self.learning_sent else 0.0
        return {
            "mean_completion_ms": float(taken.mean()) if len(taken) else None,
            "p99_completion_ms": float(np.quantile(taken, 0.99)) if len(taken) else None,
            "completed": len(taken),
            "unfinished": len(self.completion_ms) - len(taken),
            "learning_sent": self.learning_sent,
            "learning_dropped": self.learning_dropped,
            "learning_drop_fraction": drop_fraction,
            "packet_hops": self.packet_hops,
            "wall_seconds": self.wall_seconds,
        }


def simulate(
    settings: Settings, *, record: bool = False, progress: Callable[[float], None] | None = None
) -> Result:
    """Simulates one setting.

    Traffic arrives for the duration; then what is under way drains, for as long as `drain` allows.
    The same settings give the same result to the bit.

    Args:
        settings: What to simulate.
        record: Keep which packets of bursty learning arrived.
        progress: Is told now and then how many seconds have been simulated.

    Raises:
        SettingError: A setting is out of its range, the links could never carry the load, or the
            trace of learning packets cannot be replayed.
        ValueError: A record of learning traffic that is not bursty.
    """
    settings.check()
    if record and settings.learning != "bursty":
        raise ValueError(f"record of learning={settings.learning!r}: expected bursty")
    state = _new_state(settings)
    engine.run(state, 0)  # It is compiled, or loaded, before the clock starts.
    began = time.perf_counter()
    control = state.control[0]
    n = settings.num_hosts
    complete = int(settings.duration / settings.period * (1 + 1e-12)) if record else 0
    if record:
        iterations = math.ceil(settings.duration / settings.period)
        arrived = np.zeros(iterations * 2 * n * n * settings.chunk_packets, bool)
        state = state._replace(arrived=arrived)
    messages, learning = web_messages(settings), learning_packets(settings)
    until = round((settings.duration + settings.drain) * PICOSECONDS)
    reason = -1
    while reason != engine.DONE:
        reason = engine.run(state, until)
        if reason == engine.NEED_MESSAGES:
            state = _load_messages(state, next(messages, None))
        elif reason == engine.NEED_LEARNING:
            state = _load_learning(state, next(learning, None))
        elif reason != engine.DONE:
            state = _grow(state, reason)
        if progress is not None:
            progress(int(control["now"]) / PICOSECONDS)

    under_way = _under_way(state)
    counts = state.counts.copy()
    counts[..., layout.WAITED] /= PICOSECONDS
    recorded = None
    if record:
        recorded = state.arrived.reshape(-1, 2, n, n, settings.chunk_packets)[:complete]
        recorded[:, :, np.arange(n), np.arange(n)] = True
    names = ("sent", "delivered", "dropped")
    return Result(
        completion_ms=_completions(state),
        learning_sent=int(control["measured_sent"]),
        learning_dropped=int(control["measured_lost"]),
        counts=counts,
        peak_bytes=state.ports["peak"].copy(),
        totals={
            **{f"web_{name}": int(control[f"web_{name}"]) for name in names},
            "web_under_way": under_way[layout.WEB_CLASS],
            **{f"learning_{name}": int(control[f"learning_{name}"]) for name in names},
            "learning_under_way": under_way[layout.LEARNING_CLASS],
            "retransmissions": int(control["retransmissions"]),
            "time_outs": int(control["time_outs"]),
        },
        packet_hops=int(control["hops"]),
        wall_seconds=time.perf_counter() - began,
        arrived=recorded,
    )


def _new_state(s: Settings) -> State:
    n = s.num_hosts
    leaves = 1 << (3 * n + 1).bit_length()
    control = np.zeros(1, layout.CONTROL)
    packets = s.packets_per_message
    last = s.message_bytes - (packets - 1) * (s.mtu_bytes - s.header_bytes) + s.header_bytes
    of = s.params
    # The first blocks of traffic are asked for at once.
    values = {
        "num_hosts": n,
        "time_bits": leaves.bit_length() - 1,
        "ps_per_byte": s.ps_per_byte,
        "propagation": _ps(s.propagation_us, 1e-6),
        "mtu_bytes": s.mtu_bytes,
        "ack_bytes": s.ack_bytes,
        "ideal": s.transport == "ideal",
        "from_sender": s.completion == "sender",
        "packets_per_message": packets,
        "last_packet_bytes": last,
        "initial_window": s.initial_window,
        "min_time_out": _ps(s.min_rto_ms, 1e-3),
        "web_buffer": _bytes(s.web_buffer_bytes),
        "discipline": ports.DISCIPLINES[s.discipline],
        "threshold": _bytes(of.get("threshold_bytes", math.inf)),
        "learning_buffer": _bytes(of.get("learning_buffer_bytes", math.inf)),
        "probability": of.get("drop_probability", of.get("low_priority_fraction", 0.0)),
        "token_rate": of.get("policer_mbps", 0.0) * 1e6 / 8 / PICOSECONDS,
        "token_burst": of.get("policer_burst_bytes", 0.0),
        "deadline": _ps(of.get("deadline_ms", 0.0), 1e-3),
        "seed": seed_of_drops(s),
        "measure_from": _ps(s.warmup, 1),
        "measure_until": _ps(s.duration, 1),
        "first_timer": NEVER,
        "packet_free_list": -1,
        "connection_free_list": -1,
    }
    for name, value in values.items():
        control[name] = value
    control["quantum"] = s.mtu_bytes * np.array([of.get("web_weight", 1.0), 1.0])
    ports_ = np.zeros(2 * n, layout.PORT)
    for name in ("head", "tail", "link_head", "link_tail"):
        ports_[name] = -1
    ports_["tokens"] = of.get("policer_burst_bytes", 0.0)
    state = State(
        control=control,
        tree=np.full(2 * leaves, NO_EVENT, np.int64),
        ports=ports_,
        packets=np.zeros(0, layout.PACKET),
        connections=np.zeros(0, layout.CONNECTION),
        scoreboard=np.zeros((0, packets), np.uint8),
        timers=new_timers(4096),
        counts=np.zeros((2 * n, 2, 4)),
        completed=np.zeros(0, np.int64),
        arrived=np.zeros(0, bool),
        message_times=np.zeros(0, np.int64),
        message_hosts=np.zeros((0, 2), np.int16),
        learning_times=np.zeros(0, np.int64),
        learning_numbers=np.zeros(0, np.int64),
        learning_destinations=np.zeros(0, np.int16),
        learning_sizes=np.zeros(0, np.int32),
        learning_next=np.zeros(n, np.int64),
        learning_ends=np.zeros(n, np.int64),
    )
    return _grow(_grow(state, engine.NEED_PACKETS), engine.NEED_CONNECTIONS)


def _ps(value: float, unit: float) -> int:
    return round(value * unit * PICOSECONDS)


def _bytes(limit: float) -> int:
    return NEVER if limit == math.inf else int(limit)


def _grow(state: State, reason: int) -> State:
    """Returns the state with a pool twice as large."""
    control = state.control[0]
    if reason == engine.NEED_TIMERS:
        return state._replace(timers=_doubled(state.timers))
    if reason == engine.NEED_PACKETS:
        packets = _doubled(state.packets, 4 * int(control["packets_per_message"]) + 4096)
        _free(packets, len(state.packets), control, "packet")
        return state._replace(packets=packets)
    connections = _doubled(state.connections, 256)
    _free(connections, len(state.connections), control, "connection")
    scoreboard = np.zeros((len(connections), state.scoreboard.shape[1]), np.uint8)
    scoreboard[: len(state.scoreboard)] = state.scoreboard
    return state._replace(connections=connections, scoreboard=scoreboard)


def _doubled(pool: np.ndarray, at_least: int = 0) -> np.ndarray:
    larger = np.zeros(max(2 * len(pool), at_least), pool.dtype)
    larger[: len(pool)] = pool
    return larger


def _free(pool: np.ndarray, first: int, control: np.void, kind: str) -> None:
    """Puts all from `first` on into the free list of a kind."""
    following = np.arange(first + 1, len(pool) + 1)
    following[-1] = control[f"{kind}_free_list"]
    pool["next"][first:] = following
    control[f"{kind}_free_list"] = first
    control[f"free_{kind}s"] += len(pool) - first


def _load_messages(state: State, block: Messages | None) -> State:
    control = state.control[0]
    control["next_message"] = 0
    if block is None:
        control["messages_until"] = NEVER
        return state._replace(message_times=state.message_times[:0])
    control["messages_until"] = block.until
    control["unmeasured"] += np.count_nonzero(block.times < control["measure_from"])
    needed = int(control["messages"]) + len(block.times)
    completed = state.completed
    if needed > len(completed):
        completed = np.full(2 * needed, -1, np.int64)
        completed[: len(state.completed)] = state.completed
    return state._replace(completed=completed, message_times=block.times, message_hosts=block.hosts)


def _load_learning(state: State, block: LearningPackets | None) -> State:
    control = state.control[0]
    if block is None:
        control["learning_until"] = NEVER
        state.learning_next[:] = state.learning_ends
        return state
    control["learning_until"] = block.until
    return state._replace(
        learning_times=block.times,
        learning_numbers=block.numbers,
        learning_destinations=block.destinations,
        learning_sizes=block.sizes,
        learning_next=block.ends[:-1].copy(),
        learning_ends=block.ends[1:].copy(),
    )


def _completions(state: State) -> np.ndarray:
    """Returns the milliseconds of each message that was measured, nan where it is not complete."""
    control = state.control[0]
    taken = state.completed[int(control["unmeasured"]) : int(control["messages"])]
    return np.where(taken >= 0, taken / (PICOSECONDS / 1000), np.nan)


def _under_way(state: State) -> tuple[int, int]:
    """Returns how many packets of the web, and of learning, are in queues and on links."""
    used = len(state.packets) - int(state.control[0]["free_packets"])
    web = int(state.connections["in_network"].sum())
    return web, used - web
