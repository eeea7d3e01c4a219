"""What arrives from outside: web messages and learning packets, drawn block by block.

Each purpose draws from a stream of its own, so that the web messages of a seed are the same
whatever the learning traffic and the discipline are, and the other way round. Web messages keep
their hosts, and their order, whatever their rate: times are only stretched.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from rps_jax.colocation.layout import NEVER
from rps_jax.colocation.settings import PICOSECONDS, SettingError, Settings

_WEB, _LEARNING, _DROPS = range(3)
_BLOCK = 16384


class Messages(NamedTuple):
    """A block of web messages.

    Attributes:
        times: int64 `[messages]`, in ps, ascending.
        hosts: int16 `[messages, 2]`, source and destination.
        until: When the next block is needed, in ps.
    """

    times: np.ndarray
    hosts: np.ndarray
    until: int


class LearningPackets(NamedTuple):
    """A block of learning packets, host after host, each host's in order of time.

    Attributes:
        times: int64 `[packets]`, in ps.
        numbers: int64 `[packets]`, unlike those of all other learning packets. Of bursty traffic,
            the flat index of `[iteration, phase, source, destination, packet of the chunk]`.
        destinations: int16 `[packets]`.
        sizes: int32 `[packets]`, bytes, headers included.
        ends: int64 `[num_hosts + 1]`, where each host's packets begin, and the last one's end.
        until: When the next block is needed, in ps; all its packets are as late.
    """

    times: np.ndarray
    numbers: np.ndarray
    destinations: np.ndarray
    sizes: np.ndarray
    ends: np.ndarray
    until: int


def seed_of_drops(settings: Settings) -> int:
    """Returns 64 bits from which disciplines draw which packet is dropped."""
    return int(_stream(settings, _DROPS).integers(2**63))


def web_messages(settings: Settings) -> Iterator[Messages]:
    """Yields the web messages of the whole duration."""
    if settings.web_rate == 0:
        return
    rng, hosts, now = _stream(settings, _WEB), settings.num_hosts, 0.0
    while True:
        seconds = now + np.cumsum(rng.exponential(size=_BLOCK)) / settings.web_rate
        now = float(seconds[-1])
        sources = rng.integers(hosts, size=_BLOCK)
        destinations = (sources + rng.integers(1, hosts, size=_BLOCK)) % hosts
        pairs = np.stack([sources, destinations], 1).astype(np.int16)
        kept = int(np.searchsorted(seconds, settings.duration))
        times = _in_ps(seconds[:kept])
        more = kept == _BLOCK
        yield Messages(times, pairs[:kept], int(times[-1]) if more else NEVER)
        if not more:
            return


def learning_packets(settings: Settings) -> Iterator[LearningPackets]:
    """Yields the learning packets of the whole duration."""
    if settings.learning == "bursty":
        return _bursty(settings)
    if settings.learning == "poisson":
        return _poisson(settings)
    if settings.learning == "trace":
        return _trace(settings)
    return iter(())


def _stream(settings: Settings, purpose: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(settings.seed, spawn_key=(purpose,)))


def _in_ps(seconds: np.ndarray) -> np.ndarray:
    return np.rint(seconds * PICOSECONDS).astype(np.int64)


def _bursty(settings: Settings) -> Iterator[LearningPackets]:
    """A block an iteration: each host's reduce-scatter burst, then its all-gather burst."""
    rng, n, packets = _stream(settings, _LEARNING), settings.num_hosts, settings.chunk_packets
    payload = settings.mtu_bytes - settings.header_bytes
    last = settings.chunk_bytes - (packets - 1) * payload + settings.header_bytes
    period, jitter = settings.period * PICOSECONDS, settings.jitter_ms * 1e-3 * PICOSECONDS
    ps_per_byte = 8 * PICOSECONDS / (settings.pacing_mbps * 1e6)
    burst = (n - 1) * packets
    # Of each host and phase, a packet to each destination in turn, before they are shuffled.
    others = np.tile(np.repeat(np.arange(1, n, dtype=np.int16), packets), (n * 2, 1))
    ranks = np.tile(np.arange(packets), n - 1)
    source = np.arange(n)[:, None, None]
    phase = np.arange(2)[None, :, None]
    horizon, iteration = round(settings.duration * PICOSECONDS), 0
    while iteration * period < horizon:
        order = rng.permuted(others, axis=1)
        # A chunk's packets leave in their order.
        rank = np.empty((n * 2, burst), np.int64)
        np.put_along_axis(rank, np.argsort(order, axis=1, kind="stable"), ranks[None], axis=1)
        sizes = np.where(rank == packets - 1, last, settings.mtu_bytes).reshape(n, 2, burst)
        sent = np.cumsum(sizes, axis=-1) * ps_per_byte
        starts = rng.uniform(0, jitter, (n, 2)) if jitter > 0 else np.zeros((n, 2))
        # Where pacing is slow, a host's all-gather follows its reduce-scatter without a pause.
        starts[:, 1] += np.maximum(period / 4, starts[:, 0] + sent[:, 0, -1])
        times = iteration * period + starts[..., None] + sent - sent[..., :1]
        destination = (source + order.reshape(n, 2, burst)) % n
        number = (iteration * 2 + phase) * n + source
        number = (number * n + destination) * packets + rank.reshape(n, 2, burst)
        yield _block(
            times.reshape(n, -1),
            number.reshape(n, -1),
            destination.reshape(n, -1),
            sizes.reshape(n, -1),
            until=round((iteration + 1) * period),
            horizon=horizon,
        )
        iteration += 1


def _block(
    times: np.ndarray,
    numbers: np.ndarray,
    destinations: np.ndarray,
    sizes: np.ndarray,
    *,
    until: int,
    horizon: int,
) -> LearningPackets:
    """Returns a block of packets `[num_hosts, packets]`, cut at the horizon; times are float."""
    kept = times < horizon
    return LearningPackets(
        np.rint(times[kept]).astype(np.int64),
        numbers[kept],
        destinations[kept].astype(np.int16),
        sizes[kept].astype(np.int32),
        np.concatenate([[0], np.cumsum(kept.sum(1))]),
        until if until < horizon else NEVER,
    )


def _poisson(settings: Settings) -> Iterator[LearningPackets]:
    """Packets of full size, Poisson, from and to uniform hosts."""
    rng, hosts = _stream(settings, _LEARNING), settings.num_hosts
    rate = settings.learning_gbps * 1e9 / (8 * settings.mtu_bytes)
    now, first, until = 0.0, 0, 0
    while until < NEVER:
        seconds = now + np.cumsum(rng.exponential(size=_BLOCK)) / rate
        now = float(seconds[-1])
        sources = rng.integers(hosts, size=_BLOCK).astype(np.int16)
        destinations = (sources + rng.integers(1, hosts, size=_BLOCK)) % hosts
        kept = int(np.searchsorted(seconds, settings.duration))
        # Rounded, the first might come before the block does.
        times = np.maximum(_in_ps(seconds[:kept]), until)
        until = int(times[-1]) + 1 if kept == _BLOCK else NEVER
        order = np.argsort(sources[:kept], kind="stable")
        yield LearningPackets(
            times[order],
            first + order,
            destinations[order].astype(np.int16),
            np.full(kept, settings.mtu_bytes, np.int32),
            np.searchsorted(sources[order], np.arange(hosts + 1)),
            until,
        )
        first += _BLOCK


def _trace(settings: Settings) -> Iterator[LearningPackets]:
    """All packets of a file, in one block."""
    table = _read_trace(settings)
    table = table[table[:, 0] < settings.duration]
    order = np.lexsort((table[:, 0], table[:, 1]))
    seconds, sources, destinations, sizes = table[order].T
    yield LearningPackets(
        _in_ps(seconds),
        order.astype(np.int64),
        destinations.astype(np.int16),
        sizes.astype(np.int32),
        np.searchsorted(sources, np.arange(settings.num_hosts + 1)),
        NEVER,
    )


def _read_trace(settings: Settings) -> np.ndarray:
    """Returns the file of `learning_trace`: float64 `[packets, 4]`."""
    columns = "time_s,source,destination,bytes"

    def expect(holds: bool, expected: str) -> None:
        if not holds:
            raise SettingError("learning_trace", settings.learning_trace, expected)

    assert settings.learning_trace is not None
    lines = settings.learning_trace.read_text(errors="replace").splitlines()
    if lines and lines[0].replace(" ", "") == columns:
        del lines[0]
    try:
        table = np.loadtxt(lines, delimiter=",", ndmin=2) if lines else np.empty((0, 0))
    except ValueError:
        table = np.empty((0, 0))
    expect(table.shape[1] == 4, f"lines of {columns}")
    seconds, hosts, sizes = table[:, 0], table[:, 1:3], table[:, 3]
    expect(bool((seconds >= 0).all()), "times of at least 0")
    known = (hosts >= 0) & (hosts < settings.num_hosts) & (hosts == np.trunc(hosts))
    expect(bool(known.all()), f"hosts numbered from 0 to {settings.num_hosts - 1}")
    expect(bool((hosts[:, 0] != hosts[:, 1]).all()), "packets from one host to another")
    whole = (sizes >= 1) & (sizes <= settings.mtu_bytes) & (sizes == np.trunc(sizes))
    expect(bool(whole.all()), f"packets of 1 to {settings.mtu_bytes} bytes")
    return table
