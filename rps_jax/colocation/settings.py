"""One simulation, described: hosts, links, web service, learning traffic, and who goes first."""

import dataclasses
import math
from pathlib import Path
from typing import Any, Literal

PICOSECONDS = 10**12
"""In a second. The simulation counts time in whole picoseconds, so that it is exact."""
MOST_SECONDS = 1000
"""The longest duration."""

Discipline = Literal[
    "fifo",
    "threshold",
    "strict-priority",
    "drr",
    "fraction",
    "random",
    "policer",
    "deadline",
]

PARAMS: dict[str, dict[str, float]] = {
    "fifo": {},
    "threshold": {"threshold_bytes": 100_000},
    "strict-priority": {"learning_buffer_bytes": 100_000},
    "drr": {"web_weight": 4, "learning_buffer_bytes": 100_000},
    "fraction": {"low_priority_fraction": 0.5, "learning_buffer_bytes": 100_000},
    "random": {"drop_probability": 0.05},
    "policer": {"policer_mbps": 150, "policer_burst_bytes": 30_000},
    "deadline": {"deadline_ms": 1},
}
"""The parameters of each discipline, and what each is where nothing is said."""


class SettingError(ValueError):
    """A setting that cannot be simulated.

    Attributes:
        name: Name of the setting.
        value: What it is.
        expected: What it was expected to be.
    """

    def __init__(self, name: str, value: Any, expected: str) -> None:
        """Says which setting, and what was expected of it."""
        super().__init__(f"{name}={value}: expected {expected}")
        self.name, self.value, self.expected = name, value, expected


@dataclasses.dataclass(frozen=True)
class Settings:
    """A web service and a training job that share one switch.

    Every host has a full-duplex link to the switch; packets queue at the host's network card and
    at the switch's port towards their destination. Parameters of a discipline that are not given
    are those of `PARAMS`; those of another discipline are refused.

    Raises:
        SettingError: A setting is out of its range, or the network could never carry the load.
    """

    num_hosts: int = 16
    """Hosts on the switch; each sends to each."""
    link_gbps: float = 1.0
    """Rate of each link, in each direction."""
    propagation_us: float = 1.0
    """Propagation delay of each link."""
    mtu_bytes: int = 1500
    """Largest packet, headers included."""
    header_bytes: int = 40
    """Headers in each packet of data."""
    ack_bytes: int = 64
    """Size of an acknowledgement."""

    web_rate: float = 5000.0
    """Web messages a second, of all hosts together: Poisson, from and to uniform hosts."""
    message_bytes: int = 100_000
    """Payload of a web message."""
    transport: Literal["tcp", "ideal"] = "tcp"
    """How a message is sent: TCP with SACK, or all packets at once, for closed forms."""
    completion: Literal["receiver", "sender"] = "receiver"
    """When a message is complete: its last byte received; or, after a handshake, acknowledged."""
    initial_window: int = 10
    """Packets that TCP sends before the first acknowledgement."""
    min_rto_ms: float = 200.0
    """Smallest retransmission time-out of TCP."""
    web_buffer_bytes: float = math.inf
    """What of web traffic may wait at a port; more is dropped and sent again."""

    learning: Literal["bursty", "poisson", "trace", "none"] = "bursty"
    """Learning traffic: iterations as RPS makes them, smooth, replayed from a file, or none."""
    learning_gbps: float = 2.4
    """Rate of the learning traffic of all hosts together, headers included."""
    model_bytes: int = 6_920_000
    """Size of the model that bursty traffic exchanges; ResNet-110's by default."""
    pacing_mbps: float = 900.0
    """Rate at which a host sends its burst."""
    jitter_ms: float = 2.0
    """Each host starts a burst late by up to this, uniformly."""
    learning_trace: Path | None = None
    """CSV file to replay: a line a packet of time_s, source, destination, bytes."""

    discipline: Discipline = "threshold"
    """Which learning packets wait, and which are dropped, at each port; fifo drops none."""
    threshold_bytes: float | None = None
    """threshold: drop a learning packet that would make more than this wait (inf: none). 100000
    where nothing is said."""
    learning_buffer_bytes: float | None = None
    """strict-priority, drr, fraction: what of (low-priority) learning may wait at a port. 100000
    where nothing is said."""
    web_weight: float | None = None
    """drr: the web's share of a busy link, for each 1 of learning; at least 1. 4 where nothing is
    said."""
    low_priority_fraction: float | None = None
    """fraction: share of learning packets that yield to all others. 0.5 where nothing is said."""
    drop_probability: float | None = None
    """random: of a learning packet, at each of the two ports. 0.05 where nothing is said."""
    policer_mbps: float | None = None
    """policer: rate of learning that a port lets pass. 150 where nothing is said."""
    policer_burst_bytes: float | None = None
    """policer: how much may pass at once. 30000 where nothing is said."""
    deadline_ms: float | None = None
    """deadline: a learning packet that would arrive later than this is discarded. 1 where nothing
    is said."""

    duration: float = 13.8
    """Seconds in which traffic arrives, the warm-up included."""
    warmup: float = 0.69
    """Seconds at the start that are not measured."""
    drain: float = 10.0
    """Seconds after the duration in which what is under way may still arrive."""
    seed: int = 1
    """Decides all arrivals, of web and learning traffic each by itself, and random drops."""

    def check(self) -> None:
        """Checks what can be checked without a simulation.

        Raises:
            SettingError: A setting is out of its range, or the links could never carry the load.
        """
        _check(self)

    @property
    def params(self) -> dict[str, float]:
        """The parameters of the discipline, and what each is."""
        given = {name: getattr(self, name) for name in PARAMS[self.discipline]}
        return PARAMS[self.discipline] | {k: v for k, v in given.items() if v is not None}

    def as_json(self) -> dict[str, Any]:
        """Returns the settings as JSON has them: no infinities, and the parameters as they are."""
        values = dataclasses.asdict(self) | self.params
        shown = {name: value for name, value in values.items() if value is not None}
        return {
            name: "inf" if value == math.inf else str(value) if isinstance(value, Path) else value
            for name, value in shown.items()
        }

    @property
    def ps_per_byte(self) -> int:
        """Picoseconds that a byte takes on a link."""
        return round(8 * PICOSECONDS / (self.link_gbps * 1e9))

    @property
    def packets_per_message(self) -> int:
        """Packets of a web message."""
        return math.ceil(self.message_bytes / (self.mtu_bytes - self.header_bytes))

    @property
    def chunk_packets(self) -> int:
        """Packets of a chunk of the model: of what a host sends another in one burst."""
        return math.ceil(self.chunk_bytes / (self.mtu_bytes - self.header_bytes))

    @property
    def chunk_bytes(self) -> int:
        """Payload of a chunk: the model is cut into one a host."""
        return math.ceil(self.model_bytes / self.num_hosts)

    @property
    def period(self) -> float:
        """Seconds of an iteration of bursty learning, from its aggregate rate."""
        chunk = self.chunk_bytes + self.chunk_packets * self.header_bytes
        chunks = 2 * self.num_hosts * (self.num_hosts - 1)
        return 8 * chunk * chunks / (self.learning_gbps * 1e9)

    @property
    def web_load(self) -> float:
        """Share of each link's capacity that web data, acknowledgements and handshakes take."""
        packets = self.packets_per_message
        wire = self.message_bytes + packets * self.header_bytes
        if self.transport == "tcp":
            handshake = 2 if self.completion == "sender" else 0
            wire += (packets + handshake) * self.ack_bytes
        return self.web_rate * wire / self.num_hosts * self.ps_per_byte / PICOSECONDS

    @property
    def learning_load(self) -> float:
        """Share of each link's capacity that learning offers; 0 for a trace, which is not read."""
        if self.learning in ("none", "trace"):
            return 0.0
        return self.learning_gbps / self.num_hosts / self.link_gbps

    @property
    def capacity(self) -> float:
        """Web messages a second that fit on the links beside the learning that is not dropped."""
        one = dataclasses.replace(self, web_rate=1.0).web_load
        return (1 - self._undroppable) / one

    @property
    def _undroppable(self) -> float:
        """Share of each link that learning takes however much web traffic there is."""
        load, of = self.learning_load, self.params
        if self.discipline == "fifo":
            return load
        if math.inf in (of.get("threshold_bytes"), of.get("learning_buffer_bytes")):
            return load
        if self.discipline == "fraction":
            return load * (1 - of["low_priority_fraction"])
        if self.discipline == "random":
            return load * (1 - of["drop_probability"])
        if self.discipline == "policer":
            return min(load, of["policer_mbps"] / (1000 * self.link_gbps))
        if self.discipline == "drr":
            return min(load, 1 / (1 + of["web_weight"]))
        return 0.0


def with_discipline(settings: Settings, discipline: Discipline, **params: float) -> Settings:
    """Returns the same settings under another discipline.

    Args:
        settings: Whose own discipline is put away.
        discipline: The new one.
        **params: Its parameters; those not given are those of `PARAMS`.
    """
    none: dict[str, Any] = dict.fromkeys(name for given in PARAMS.values() for name in given)
    return dataclasses.replace(settings, discipline=discipline, **{**none, **params})


_MOST_BYTES = "at most 10^15, or inf"


def _fits(num_bytes: float) -> bool:
    """Returns whether the simulation can count so many bytes, in 64 bits."""
    return num_bytes <= 1e15 or num_bytes == math.inf


def _check(s: Settings) -> None:
    def expect(name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise SettingError(name, getattr(s, name), expected)

    def positive(name: str, most: float) -> None:
        expect(name, 0 < getattr(s, name) <= most, f"a number in (0, {most:g}]")

    def one_of(name: str, annotation: Any) -> None:
        expect(name, getattr(s, name) in annotation.__args__, " or ".join(annotation.__args__))

    for name in ("transport", "completion", "learning", "discipline"):
        one_of(name, Settings.__annotations__[name])
    expect("num_hosts", 2 <= s.num_hosts <= 1000, "an integer in [2, 1000]")
    expect("link_gbps", 0.001 <= s.link_gbps <= 1000, "a rate in [0.001, 1000]")
    expect("propagation_us", 0 <= s.propagation_us <= 1e6, "a delay in [0, 1000000]")
    expect("header_bytes", s.header_bytes >= 0, "at least 0")
    expect("mtu_bytes", s.header_bytes < s.mtu_bytes <= 65536, "above the headers, at most 65536")
    expect("ack_bytes", 1 <= s.ack_bytes <= s.mtu_bytes, "an integer in [1, the MTU]")
    expect("web_rate", 0 <= s.web_rate < math.inf, "a rate of at least 0")
    expect("message_bytes", 1 <= s.message_bytes <= 10**8, "an integer in [1, 10^8]")
    expect("initial_window", 1 <= s.initial_window <= 10**6, "an integer in [1, 10^6]")
    positive("min_rto_ms", 1e6)
    expect("web_buffer_bytes", s.web_buffer_bytes >= s.mtu_bytes, "at least one packet's bytes")
    expect("web_buffer_bytes", _fits(s.web_buffer_bytes), _MOST_BYTES)
    positive("learning_gbps", 1e6)
    positive("pacing_mbps", 1e6)
    positive("duration", MOST_SECONDS)
    expect("model_bytes", 1 <= s.model_bytes <= 2**40, "an integer in [1, 2^40]")
    expect("jitter_ms", 0 <= s.jitter_ms < math.inf, "at least 0")
    expect("warmup", 0 <= s.warmup < s.duration, f"in [0, {s.duration:g}), the duration")
    expect("drain", 0 <= s.drain <= 1000, "in [0, 1000]")
    expect("seed", 0 <= s.seed < 2**32, "an integer in [0, 2^32)")
    _check_discipline(s, expect)

    if s.transport == "ideal":
        expect("web_buffer_bytes", s.web_buffer_bytes == math.inf, "inf with --transport ideal")
        expect("completion", s.completion == "receiver", "receiver with --transport ideal")
    trace = s.learning_trace is not None
    expect("learning_trace", trace == (s.learning == "trace"), "a file if learning is a trace")
    if s.learning == "bursty":
        least = 1000 * s.learning_gbps / s.num_hosts
        expect("pacing_mbps", s.pacing_mbps > least, f"above {least:g}, each host's mean rate")
        free = 1e3 * s.period * (1 - least / s.pacing_mbps)
        expect("jitter_ms", s.jitter_ms < free / 2, f"below {free / 2:.3g}, so that bursts fit")
    if s._undroppable >= 1:
        raise SettingError(
            "learning_gbps",
            s.learning_gbps,
            f"less than the links carry, where {s.discipline} drops no more of it",
        )
    if s.web_load + s._undroppable >= 1:
        expected = f"below {s.capacity:.0f} (more could never drain)"
        raise SettingError("web_rate", s.web_rate, expected)


def _check_discipline(s: Settings, expect: Any) -> None:
    for name in {name for own in PARAMS.values() for name in own} - s.params.keys():
        others = ", ".join(key for key, own in PARAMS.items() if name in own)
        expect(name, getattr(s, name) is None, f"none with {s.discipline} (it is of {others})")
    least = {"web_weight": 1.0, "policer_burst_bytes": float(s.mtu_bytes)}
    for name, value in s.params.items():
        if name in ("low_priority_fraction", "drop_probability"):
            expect(name, 0 <= value <= 1, "a share in [0, 1]")
        else:
            low = least.get(name, 0.0)
            expect(name, value >= low, f"at least {low:g}")
            if name.endswith("_bytes"):
                expect(name, _fits(value), _MOST_BYTES)
            else:
                expect(name, value <= 1e6, "at most 10^6")
