"""Training beside a web service on real links: figure 6 of the paper with nothing simulated.

Every host has a worker, which exchanges a model once a period, and a web service, which asks the
others for messages by a Poisson process. What is simulated stands beside it: the same hosts, links,
messages and bursts in `rps_jax.colocation`.
"""

import dataclasses
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np

from launch.bed import Bed, Link
from launch.benchmarks.beds import CongestionControl, check_bed
from launch.benchmarks.group import Group
from launch.benchmarks.results import Row, write_results
from launch.benchmarks.wire import join, start_workers
from launch.benchmarks.worker import TCP, UDP
from launch.cli.command_line import Count, Seed, Within, expect, read_command
from launch.colocation.options import refusals
from launch.reports.tables import markdown_table
from launch.trainer.run_directory import check_can_write
from rps_jax.colocation import Settings, simulate, with_discipline
from rps_jax.colocation.settings import Discipline

_TCP_HEADERS = 66
"""Of Ethernet, IP, and TCP with time stamps."""
_PACING = 0.9
"""At what share of the link a burst is sent, as the simulation has it."""
_WARMUP = 2.0
_DRAIN = 10.0
_PACKET_BYTES = 1484


@dataclasses.dataclass(frozen=True)
class Way:
    """One way to share the links.

    Attributes:
        name: For people.
        training: How the workers exchange, None if they do not.
        lower_effort_last: Whether the links let the web go first.
        discipline: What the simulation calls it; None if it cannot simulate it.
    """

    name: str
    training: str | None
    lower_effort_last: bool
    discipline: Discipline | None


WAYS = (
    Way("no training", None, False, "fifo"),
    Way("UDP, one queue", UDP, False, "fifo"),
    Way("UDP, web first", UDP, True, "strict-priority"),
    Way("TCP, one queue", TCP, False, None),
)


@dataclasses.dataclass(frozen=True)
class ColocationConfig:
    """Measure a web service beside training, on real links and in the simulation of the same.

    Needs Linux, root, and the commands `ip` and `tc`; touches nothing of the machine's own network.
    """

    rate: Annotated[float, Within(1, 10_000)] = 100.0
    """Of every host's link, in each direction; Mbps."""
    web_loads: Annotated[tuple[float, ...], Within(0.01, 0.95)] = (0.3, 0.5, 0.7)
    """Share of every link that the web's messages take, headers and acknowledgements included."""
    training_load: Annotated[float, Within(0.01, 0.95)] = 0.2
    """Share of every link that training takes."""
    num_workers: Annotated[int, Within(2, 64)] = 4
    """Hosts, each with a worker and a web service."""
    num_parameters: Annotated[int, Within(1, 2**31)] = 500_000
    """Size of the model, of float32."""
    message_bytes: Annotated[int, Within(1, 10**8)] = 100_000
    """Payload of a web message."""
    queue_ms: Annotated[float, Within(0.1, 10_000)] = 100.0
    """What may wait in the switch for a link, of each queue, in milliseconds of its rate."""
    seconds: Annotated[float, Within(3, 1000)] = 15.0
    """Of each measurement, the first two of which are the warm-up."""
    rounds: Count = 2
    """Measurements of each setting, which take turns."""
    congestion_control: CongestionControl = None
    """Of TCP."""
    seed: Seed = 0
    """Decides when messages are asked for, and of whom."""
    output_dir: Path = Path("docs/results/wire-colocation")
    """Folder of the picture, the table and the numbers."""

    def settings(self, web_load: float) -> Settings:
        """Returns the simulation of the same, with one queue that drops nothing."""
        base = Settings(
            num_hosts=self.num_workers,
            link_gbps=self.rate / 1000,
            mtu_bytes=_PACKET_BYTES,
            header_bytes=_TCP_HEADERS,
            ack_bytes=_TCP_HEADERS // 2,  # Linux acknowledges every other packet.
            message_bytes=self.message_bytes,
            completion="sender",
            learning_gbps=self.training_load * self.rate * self.num_workers / 1000,
            model_bytes=4 * self.num_parameters,
            pacing_mbps=_PACING * self.rate,
            discipline="fifo",
            duration=self.seconds * self.rounds,
            warmup=_WARMUP,
            drain=_DRAIN,
            seed=1 + self.seed,
        )
        one = dataclasses.replace(base, web_rate=1.0).web_load
        return dataclasses.replace(base, web_rate=web_load / one)

    @property
    def period(self) -> float:
        """Seconds from one exchange to the next."""
        return self.settings(0.5).period


def run(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    config = read_command(ColocationConfig, "launch.bench colocation", argv, ColocationConfig())
    _check(config)
    check_bed("colocation", config.congestion_control)
    link = Link(rate=1e6 * config.rate, queue_seconds=config.queue_ms / 1000)
    found: dict[tuple[float, Way], list[Row]] = {}
    with (
        Bed(config.num_workers, link, config.congestion_control) as bed,
        start_workers(bed, config.num_parameters) as workers,
        Group(bed, "launch.benchmarks.web", message_bytes=config.message_bytes) as web,
    ):
        used = bed.used_congestion_control()
        join(workers, link_rate=_PACING * link.rate, lower_effort=True)
        for key, row in _measure(config, bed, workers, web):
            found.setdefault(key, []).append(row)
    rows = [
        {"web_load": web_load, "way": way.name, **_summary(several), **_simulated(config, *key)}
        for key, several in found.items()
        for web_load, way in [key]
    ]
    table = _table(config, rows)
    print(table)
    config.output_dir.mkdir(parents=True, exist_ok=True)
    (config.output_dir / "table.md").write_text(table)
    _draw(config, rows, config.output_dir / "colocation.png")
    made = {"congestion_control": used}
    write_results(config.output_dir / "run.json", "colocation", config, rows, **made)
    print(f"results in {config.output_dir}/")
    return 0


def _check(config: ColocationConfig) -> None:
    check_can_write("output_dir", config.output_dir)
    for web_load in config.web_loads:
        together = web_load + config.training_load
        expect("web_loads", web_load, together < 1, f"below {1 - config.training_load:g}, the rest")
        with refusals():
            config.settings(web_load).check()


def _measure(
    config: ColocationConfig, bed: Bed, workers: Group, web: Group
) -> Iterator[tuple[tuple[float, Way], Row]]:
    """Yields what was measured, of one setting after the other."""
    for round_ in range(config.rounds):
        for web_load in config.web_loads:
            rate = config.settings(web_load).web_rate / config.num_workers
            for way in WAYS:
                link = dataclasses.replace(bed.link, lower_effort_last=way.lower_effort_last)
                bed.set_link(link)
                seconds = config.seconds
                if way.training:
                    # Those who have not met for a while have to get in step again.
                    workers.ask("exchange", way=way.training, count=3)
                    workers.tell(
                        "exchange", way=way.training, seconds=seconds, period=config.period
                    )
                before, began = bed.counts(), time.monotonic()
                plan = {"rate": rate, "seconds": seconds, "warmup": _WARMUP, "drain": _DRAIN}
                answers = web.ask("load", **plan, seed=f"{config.seed} {round_} {web_load}")
                counts = bed.counts().since(before)
                carried = 8 * counts.sent_bytes / (time.monotonic() - began)
                row: Row = {
                    "completions": [x for answer in answers for x in answer["seconds"]],
                    "unfinished": sum(answer["unfinished"] for answer in answers),
                    "queue_drops": counts.queue_drops,
                    "link_use": carried / config.num_workers / link.rate,
                }
                if way.training:
                    trained = workers.answers()
                    spans = [span for each in trained for span in each["spans"]]
                    row["exchanges"] = [end - begin for begin, end in spans]
                    if way.training == UDP:
                        row["dropped"] = 1 - statistics.mean(each["arrived"] for each in trained)
                time.sleep(0.2)  # What is under way arrives.
                yield (web_load, way), row


def _summary(several: list[Row]) -> Row:
    """Returns what was measured of a setting, in all rounds."""
    completions = [x for one in several for x in one["completions"]]
    exchanges = [x for one in several for x in one.get("exchanges", [])]
    drops = [one["dropped"] for one in several if "dropped" in one]
    return {
        "messages": len(completions),
        "unfinished": sum(one["unfinished"] for one in several),
        "mean_ms": 1e3 * statistics.mean(completions) if completions else None,
        "p99_ms": 1e3 * float(np.percentile(completions, 99)) if completions else None,
        "link_use": statistics.mean(one["link_use"] for one in several),
        "queue_drops": sum(one["queue_drops"] for one in several),
        "exchanges": len(exchanges),
        "exchange_ms": 1e3 * statistics.median(exchanges) if exchanges else None,
        "dropped": statistics.mean(drops) if drops else None,
    }


def _simulated(config: ColocationConfig, web_load: float, way: Way) -> Row:
    """Returns what the simulation says of a setting, as far as it can."""
    found: Row = {}
    if way.discipline:
        settings = config.settings(web_load)
        if way.training is None:
            settings = dataclasses.replace(settings, learning="none")
        elif way.lower_effort_last:
            buffer = 1e3 * config.rate * config.queue_ms / 8
            settings = with_discipline(settings, way.discipline, learning_buffer_bytes=buffer)
        found = simulate(settings).summary()
    dropped = found.get("learning_drop_fraction") if way.training else None
    return {
        "simulated_mean_ms": found.get("mean_completion_ms"),
        "simulated_p99_ms": found.get("p99_completion_ms"),
        "simulated_dropped": dropped,
    }


def _table(config: ColocationConfig, rows: list[Row]) -> str:
    def shown(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    cells = [
        [
            f"{row['web_load']:.0%}",
            row["way"],
            shown(row["mean_ms"], ".1f"),
            shown(row["p99_ms"], ".0f"),
            shown(row["simulated_mean_ms"], ".1f"),
            shown(row["simulated_p99_ms"], ".0f"),
            shown(row["dropped"], ".2%"),
            shown(row["simulated_dropped"], ".2%"),
            shown(row["exchange_ms"], ".0f"),
        ]
        for row in rows
    ]
    header = ["web", "training", "mean", "p99", "sim.", "p99", "drops", "sim.", "exchange"]
    lines = [
        f"{config.num_workers} hosts on links of {config.rate:g} Mbps; training takes "
        f"{config.training_load:.0%} of each.",
        "Completion of web messages and exchanges in ms, beside what is simulated (sim.);",
        "drops of the training.",
        "",
        *markdown_table(header, cells),
    ]
    if unfinished := sum(row["unfinished"] for row in rows):
        lines += ["", f"{unfinished} messages did not complete; times are of the others."]
    return "\n".join(lines) + "\n"


def _draw(config: ColocationConfig, rows: list[Row], path: Path) -> None:
    import matplotlib
    from matplotlib.figure import Figure

    from launch.reports.curves import STYLE

    loads = [100 * web_load for web_load in config.web_loads]
    panels = (
        ("mean completion time (ms)", "mean_ms", 1.0),
        ("99th percentile (ms)", "p99_ms", 1.0),
        ("training dropped (%)", "dropped", 100.0),
    )
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.0, 3.4), layout="constrained")
        for axes, (title, name, scale) in zip(figure.subplots(1, 3), panels, strict=True):
            for number, way in enumerate(WAYS):
                of_way = [row for row in rows if row["way"] == way.name]
                for prefix, style in (("", "o-"), ("simulated_", "x:")):
                    values = [row[f"{prefix}{name}"] for row in of_way]
                    if None not in values:
                        label = way.name if name == "mean_ms" and not prefix else None
                        scaled = [scale * value for value in values]
                        axes.plot(loads, scaled, style, color=f"C{number}", label=label)
            axes.set(xlabel="web load (% of each link)", title=title)
            axes.set_ylim(bottom=0)
        figure.axes[0].plot([], [], "x:", color="0.3", label="simulated")
        figure.legend(loc="outside lower center", ncols=5)
        figure.savefig(path, dpi=160)
