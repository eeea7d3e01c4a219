"""The case study's options, and the ways to share the links."""

import dataclasses
from pathlib import Path
from typing import Annotated

from launch.benchmarks.beds import CongestionControl
from launch.benchmarks.worker import TCP, UDP
from launch.cli.command_line import Count, Seed, Seeds, Within
from rps_jax.colocation import Settings
from rps_jax.colocation.settings import Discipline

_TCP_HEADERS = 66
"""Of Ethernet, IP, and TCP with time stamps."""
PACING = 0.9
"""At what share of the link a burst is sent, as the simulation has it."""
WARMUP = 2.0
DRAIN = 10.0
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

    @property
    def short(self) -> str:
        """The name, for files."""
        return self.name.lower().replace(",", "").replace(" ", "-")


ONE_QUEUE = Way("UDP, one queue", UDP, False, "fifo")
WEB_FIRST = Way("UDP, web first", UDP, True, "strict-priority")
WAYS = (
    Way("no training", None, False, "fifo"),
    ONE_QUEUE,
    WEB_FIRST,
    Way("TCP, one queue", TCP, False, None),
)


@dataclasses.dataclass(frozen=True)
class ColocationConfig:
    """Measure a web service beside training, on real links and in the simulation of the same.

    Flags of launch.train, for what is trained under the drops, may follow after " -- ". Needs
    Linux, root, and the commands `ip` and `tc`; touches nothing of the machine's own network.
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
    training_seeds: Seeds = (0, 1, 2)
    """A training under the drops of each setting for every seed."""
    output_dir: Path = Path("docs/results/wire-colocation")
    """Folder of the picture, the table, the numbers, the traces and the trainings."""

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
            pacing_mbps=PACING * self.rate,
            discipline="fifo",
            duration=self.seconds * self.rounds,
            warmup=WARMUP,
            drain=DRAIN,
            seed=1 + self.seed,
        )
        one = dataclasses.replace(base, web_rate=1.0).web_load
        return dataclasses.replace(base, web_rate=web_load / one)

    @property
    def period(self) -> float:
        """Seconds from one exchange to the next."""
        return self.settings(0.5).period
