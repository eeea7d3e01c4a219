"""Measures exchanges over UDP beside an all-reduce over TCP, on real links that drop packets.

Four hosts are network namespaces on one switch, their links shaped and lossy (`launch.bed`). The
alternatives take turns, a few exchanges each. An exchange lasts from when the last worker begins it
until the last one has its average; `wire` is what the bytes that a host sends in an exchange,
headers included, take at the rate of its link.
"""

import dataclasses
import secrets
import signal
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np

from launch.bed import Bed, Counts, Link
from launch.benchmarks.beds import CongestionControl, check_bed
from launch.benchmarks.group import Group
from launch.benchmarks.results import Row, check_results, write_results
from launch.benchmarks.worker import TCP, UDP, UNTAGGED
from launch.cli.command_line import (
    Count,
    Within,
    check_memory,
    read_command,
)
from rps_jax.rules.lossy import MessageDtype
from rps_jax.transport.packets import LEAST_MTU

_WAYS = (UDP, UNTAGGED, TCP)
_TURN = 4
"""Exchanges before it is the next alternative's turn."""
_WARM_UP = {"given": 10, "found": 30}
"""Exchanges over UDP before anything is measured, where the rate is given and has to be found."""
_SLOW = 1.5

Rates = Annotated[tuple[float, ...], Within(1, 10_000, "rates in [1, 10000] Mbps")]
DropRates = Annotated[
    tuple[float, ...], Within(0, 0.3, "probabilities in [0, 0.3], which TCP survives")
]


@dataclasses.dataclass(frozen=True)
class WireConfig:
    """Measure exchanges over UDP beside an all-reduce over TCP, on links that drop packets.

    Needs Linux, root, and the commands `ip` and `tc`; touches nothing of the machine's own network.
    """

    rates: Rates = (1000, 500, 200, 100)
    """Of every host's link, in each direction; Mbps."""
    drop_rates: DropRates = (0, 0.01, 0.03, 0.1)
    """Probabilities that a packet is dropped on its way."""
    num_workers: Annotated[int, Within(2, 64)] = 4
    """Hosts, a worker each."""
    num_parameters: Annotated[int, Within(1, 2**40)] = 1_700_000
    """Size of the model, of float32; of ResNet-110."""
    rounds: Count = 25
    """Turns of each alternative, of four exchanges each, at the most."""
    seconds: Annotated[float, Within(0, 1e6)] = 25.0
    """For each setting, at the most; a round is finished."""
    message_dtype: MessageDtype | None = None
    """What the model is rounded to in datagrams; None: nothing."""
    link_rate: Literal["given", "found"] = "given"
    """Whether workers are told the rate of their links (0.98 of it), or have to find it."""
    mtu: Annotated[int, Within(LEAST_MTU, 9000, f"bytes, {LEAST_MTU} to 9000")] = 1500
    """Bytes of the largest packet of the links; 9000 are jumbo frames."""
    congestion_control: CongestionControl = None
    """Of TCP."""
    frozen_seconds: Annotated[float, Within(0, 60)] = 5.0
    """How long a worker is frozen, in the end, at the highest rate; 0: it is not."""
    json: Path | None = None
    """File for the results, for machines."""


def run(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    config = read_command(WireConfig, "launch.bench wire", argv, WireConfig())
    check_results(config.json)
    # The model, what is packed of it, what arrives of two exchanges, and the averages.
    n = config.num_workers
    check_memory("num_parameters", config.num_parameters, 4 * 10 * n * config.num_parameters)
    check_bed("wire", config.congestion_control)
    link = _link(config, max(config.rates))
    with (
        Bed(n, link, config.congestion_control) as bed,
        start_workers(bed, config.num_parameters, config.message_dtype) as workers,
    ):
        used = bed.used_congestion_control()
        _print_head()
        rows = []
        for row in _measure(config, bed, workers):
            _print_row(row)
            rows.append(row)
        print()
        _print_costs(rows)
        print()
        _print_where(rows)
        frozen = _freeze(config, bed, workers) if config.frozen_seconds else None
    goals = _goals(rows, frozen)
    print()
    _print_goals(goals)
    others: Row = {"congestion_control": used, "frozen": frozen, "goals": goals}
    write_results(config.json, "wire", config, rows, **others)
    return 0


def _measure(config: WireConfig, bed: Bed, workers: Group) -> Iterator[Row]:
    """Yields a row a setting: all that was measured, in seconds an exchange."""
    for number, rate in enumerate(config.rates):
        # Found or given, the rate is known to the networks that are joined here.
        bed.set_link(_link(config, rate))
        link_rate = 0.98e6 * rate if config.link_rate == "given" else None
        join(workers, run=number, mtu=config.mtu, link_rate=link_rate)
        for way in (UDP, UNTAGGED):
            workers.ask("exchange", way=way, count=_WARM_UP[config.link_rate])
        for drop_rate in config.drop_rates:
            bed.set_link(_link(config, rate, drop_rate))
            for way in _WAYS:
                workers.ask("exchange", way=way, count=2)
            yield {"mbps": rate, "drop_rate": drop_rate, **_measure_ways(config, bed, workers)}


def _link(config: WireConfig, mbps: float, drop_rate: float = 0.0) -> Link:
    return Link(rate=1e6 * mbps, drop_rate=drop_rate, mtu=config.mtu)


def start_workers(
    bed: Bed, num_parameters: int, message_dtype: MessageDtype | None = None
) -> Group:
    """Starts a worker on every host, and has them meet."""
    model = {"num_parameters": num_parameters, "message_dtype": message_dtype}
    return Group(bed, "launch.benchmarks.worker", **model)


def join(workers: Group, **options: Any) -> None:
    """Makes the workers join networks of datagrams, with a key that is made here."""
    workers.ask("join", key=secrets.token_hex(32), **options)


@dataclasses.dataclass
class _Way:
    """What is found of one alternative in one setting."""

    seconds: list[float] = dataclasses.field(default_factory=list)
    cpu: float = 0.0
    where: Counter[str] = dataclasses.field(default_factory=Counter)
    arrived: list[float] = dataclasses.field(default_factory=list)
    link_rates: list[float] = dataclasses.field(default_factory=list)
    counts: Counts = dataclasses.field(default_factory=lambda: Counts(0, 0, 0, 0, 0))

    def add(self, answers: list[dict[str, Any]], counts: Counts) -> None:
        self.seconds += durations_of(answers)
        self.cpu += sum(answer["cpu"] for answer in answers)
        for answer in answers:
            if "where" in answer:
                self.where.update(answer["where"])
                self.arrived.append(answer["arrived"])
                self.link_rates.append(answer["link_rate"])
        self.counts = Counts(*(a + b for a, b in zip(self.counts, counts, strict=True)))

    def row(self, rate: float, num_workers: int) -> Row:
        count, values, counts = len(self.seconds), self.seconds, self.counts
        own_drops = counts.queue_drops + counts.buffer_drops
        row: Row = {
            "median": statistics.median(values),
            "mean": statistics.mean(values),
            "p90": float(np.percentile(values, 90)),
            "p99": float(np.percentile(values, 99)),
            "exchanges": count,
            "wire": 8 * counts.sent_bytes / count / num_workers / (1e6 * rate),
            "cpu": self.cpu / count / num_workers,
            "own_drops": own_drops / max(counts.sent_packets, 1),
            "buffer_drops": counts.buffer_drops,
        }
        if self.arrived:
            row |= {
                "arrived": statistics.mean(self.arrived),
                "link_rate": statistics.mean(self.link_rates),
                "where": {
                    name: seconds / count / num_workers for name, seconds in self.where.items()
                },
            }
        return row


def durations_of(answers: list[dict[str, Any]]) -> list[float]:
    """Returns how long each exchange took: from the last beginning to the last end."""
    spans = np.array([answer["spans"] for answer in answers])
    return (spans[:, :, 1].max(0) - spans[:, :, 0].max(0)).tolist()


def _measure_ways(config: WireConfig, bed: Bed, workers: Group) -> Row:
    ways = {way: _Way() for way in _WAYS}
    until = time.monotonic() + config.seconds
    for _ in range(config.rounds):
        for way, found in ways.items():
            before = bed.counts()
            answers = workers.ask("exchange", way=way, count=_TURN)
            found.add(answers, bed.counts().since(before))
        if time.monotonic() > until:
            break
    rate = bed.link.rate / 1e6
    return {way: found.row(rate, config.num_workers) for way, found in ways.items()}


def _freeze(config: WireConfig, bed: Bed, workers: Group) -> Row:
    """Stops one worker for a while, and counts the exchanges of the others that it slows."""
    rate = max(config.rates)
    bed.set_link(_link(config, rate))
    join(workers, run=len(config.rates), mtu=config.mtu, link_rate=0.98e6 * rate)
    before = workers.ask("exchange", way=UDP, count=2 * _WARM_UP["given"])
    usual = statistics.median(durations_of(before))
    workers.tell("exchange", way=UDP, seconds=config.frozen_seconds + 4)
    time.sleep(1)
    frozen = workers.processes[-1]
    frozen.send_signal(signal.SIGSTOP)
    time.sleep(config.frozen_seconds)
    frozen.send_signal(signal.SIGCONT)
    *others, _ = workers.answers()
    slow = [
        sorted(end - begin for begin, end in other["spans"] if end - begin > _SLOW * usual)
        for other in others
    ]
    return {"mbps": rate, "usual": usual, "slow": slow, "most": max(map(len, slow))}


def _print_head() -> None:
    print(f"{'ms an exchange':<18}{'UDP':^20}{'no tags':^13}{'TCP':^19}{'TCP/UDP'}")
    names = f"{'Mbps':>5}{'drop':>5}{'wire':>7} {'median':>7}{'mean':>6}{'/wire':>6} "
    print(f"{names} {'median':>6}{'/wire':>6} {'median':>6}{'mean':>6}{'p99':>6} {'means':>7}")


def _print_row(row: Row) -> None:
    udp, untagged, tcp = (row[way] for way in _WAYS)

    def ms(way: Row, name: str, width: int = 6) -> str:
        return f"{1e3 * way[name]:>{width}.0f}"

    print(
        f"{row['mbps']:>5g}{row['drop_rate']:>5.0%}{ms(udp, 'wire', 7)} "
        f"{ms(udp, 'median', 7)}{ms(udp, 'mean')}{_over_wire(udp):>6.2f}  "
        f"{ms(untagged, 'median')}{_over_wire(untagged):>6.2f} "
        f"{ms(tcp, 'median')}{ms(tcp, 'mean')}{ms(tcp, 'p99')} {tcp['mean'] / udp['mean']:>7.2f}",
        flush=True,
    )


def _print_costs(rows: list[Row]) -> None:
    print(f"{'':<10}{'CPU ms a worker':^20}{'UDP':>8}{'':>7}{'own':>8}")
    names = f"{'UDP':>7}{'no tags':>8}{'TCP':>6}{'p90':>7}{'p99':>7}"
    print(f"{'Mbps':>5}{'drop':>5}{names}{'drops':>8}{'n':>6}")
    for row in rows:
        udp, untagged, tcp = (row[way] for way in _WAYS)
        cpu = [1e3 * way["cpu"] for way in (udp, untagged, tcp)]
        print(
            f"{row['mbps']:>5g}{row['drop_rate']:>5.0%}{cpu[0]:>7.0f}{cpu[1]:>8.0f}{cpu[2]:>6.0f}"
            f"{1e3 * udp['p90']:>7.0f}{1e3 * udp['p99']:>7.0f}{udp['own_drops']:>8.2%}"
            f"{udp['exchanges']:>6}"
        )


def _print_where(rows: list[Row]) -> None:
    """Prints where the time of a worker's exchange over UDP goes; see `transport`'s `Seconds`."""
    print("ms a worker's exchange over UDP: one after the other, but for opening")
    names = list(rows[0][UDP]["where"])
    print(f"{'Mbps':>5}{'drop':>5}{''.join(f'{name:>10}' for name in names)}")
    for row in rows:
        where = row[UDP]["where"]
        values = "".join(f"{1e3 * where[name]:>10.1f}" for name in names)
        print(f"{row['mbps']:>5g}{row['drop_rate']:>5.0%}{values}")


def _over_wire(way: Row) -> float:
    return way["median"] / way["wire"]


def _goals(rows: list[Row], frozen: Row | None) -> list[Row]:
    """Returns what is to be reached, and what was: the worst of the settings that it is of."""

    def of(name: str, goal: float, values: list[float], at_least: bool = False) -> Row:
        worst = (min if at_least else max)(values, default=None)
        return {"name": name, "goal": goal, "at_least": at_least, "found": worst}

    fast = [row for row in rows if row["mbps"] == 1000]
    slower = [row for row in rows if row["mbps"] <= 500]
    clean = {row["mbps"]: row for row in rows if row["drop_rate"] == 0}
    lossy = {row["mbps"]: row for row in rows if row["drop_rate"] == 0.1}
    by_drops = [
        lossy[rate][UDP]["median"] / clean[rate][UDP]["median"]
        for rate in clean.keys() & lossy.keys()
    ]

    def by_tcp(rate: float) -> list[float]:
        return [row[TCP]["mean"] / row[UDP]["mean"] for mbps, row in lossy.items() if mbps == rate]

    return [
        of("UDP / wire, up to 500 Mbps", 1.10, [_over_wire(row[UDP]) for row in slower]),
        of("UDP / wire, 1 Gbps, without tags", 1.15, [_over_wire(row[UNTAGGED]) for row in fast]),
        of("UDP / wire, 1 Gbps", 1.3, [_over_wire(row[UDP]) for row in fast]),
        of("10% dropped / none dropped", 1.03, by_drops),
        of("TCP / UDP, means, 10%, 1 Gbps", 5, by_tcp(1000), at_least=True),
        of("TCP / UDP, means, 10%, 200 Mbps", 2, by_tcp(200), at_least=True),
        of("slow exchanges, a worker frozen", 3, [frozen["most"]] if frozen else []),
    ]


def _print_goals(goals: list[Row]) -> None:
    print(f"{'':<34}{'goal':>14}{'worst':>8}")
    for goal in goals:
        bound = f"{'at least' if goal['at_least'] else 'at most'} {goal['goal']:g}"
        found = "-" if goal["found"] is None else f"{goal['found']:.2f}"
        print(f"{goal['name']:<34}{bound:>14}{found:>8}")
