"""The simulation held to the closed forms, at the hosts' network cards.

The hosts' arrivals are independent, so that each host of each seed is a measurement by itself, and
their spread gives the error of the mean. All cases of a seed see the same random numbers.
"""

import dataclasses
import math

import numpy as np

from rps_jax.colocation import closed_forms, layout
from rps_jax.colocation.settings import Settings, with_discipline
from rps_jax.colocation.simulation import Result, simulate


@dataclasses.dataclass(frozen=True)
class Case:
    """One number that theory knows.

    Attributes:
        name: What it is.
        settings: Where it is measured, but for seed and duration.
        expected: What theory says: seconds, or a share.
        of: The class, WEB_CLASS or LEARNING_CLASS, that it is of.
        counted: WAITED, a mean wait; or DROPPED, a share that is dropped.
    """

    name: str
    settings: Settings
    expected: float
    of: int
    counted: int


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A number of theory beside its measurement.

    Attributes:
        case: What was measured.
        measured: Mean over hosts and seeds, in the case's unit.
        error: Standard error of the mean.
    """

    case: Case
    measured: float
    error: float

    @property
    def half_width(self) -> float:
        """Returns half the width of the 95% confidence interval, of a normal distribution."""
        return 1.96 * self.error

    @property
    def deviation(self) -> float:
        """Returns how far off the measurement is, as a share of what was expected."""
        return self.measured / self.case.expected - 1

    @property
    def holds(self) -> bool:
        """Returns whether it is off by less than 2%, and by less than 4 standard errors.

        A correct simulation exceeds 4 standard errors once in 16,000 times.
        """
        off = abs(self.measured - self.case.expected)
        return off < 4 * self.error and off < 0.02 * self.case.expected


def cases() -> tuple[Case, ...]:
    """Returns every closed form: waits in one queue and in two, and drops."""
    payload = 1460
    base = Settings(transport="ideal", message_bytes=payload, learning="none", discipline="fifo")
    service = base.mtu_bytes * base.ps_per_byte / 1e12
    gbps = base.link_gbps * base.num_hosts

    def shared(web: float, learning: float, packets: int = 1) -> Settings:
        """Returns settings of which web and learning take these shares of each link."""
        return dataclasses.replace(
            base,
            message_bytes=packets * payload,
            web_rate=web * base.num_hosts / (packets * service),
            learning="poisson" if learning else "none",
            learning_gbps=learning * gbps or base.learning_gbps,
        )

    def bounded(load: float, packets: int) -> Settings:
        """Returns settings of learning alone, of which so many packets may wait."""
        return Settings(
            web_rate=0.0,
            learning="poisson",
            learning_gbps=load * gbps,
            threshold_bytes=packets * base.mtu_bytes,
        )

    web, learning = layout.WEB_CLASS, layout.LEARNING_CLASS
    waited, dropped = layout.WAITED, layout.DROPPED
    found = []
    for load in (0.3, 0.6, 0.8):
        waits = closed_forms.fifo(load, 0, service)
        found.append(Case(f"M/D/1, load {load}", shared(load, 0), waits.web, web, waited))
    for packets in (5, 69):
        both = shared(0.5, 0.15, packets)
        waits = closed_forms.fifo(0.5, 0.15, service, packets)
        name = f"FIFO, messages of {packets}"
        found.append(Case(f"{name}: web", both, waits.web, web, waited))
        found.append(Case(f"{name}: learning", both, waits.learning, learning, waited))
    both = with_discipline(shared(0.5, 0.3), "strict-priority", learning_buffer_bytes=math.inf)
    waits = closed_forms.priority(0.5, 0.3, service)
    found.append(Case("priority: web", both, waits.web, web, waited))
    found.append(Case("priority: learning", both, waits.learning, learning, waited))
    for load in (0.15, 0.8, 1.5):
        share = closed_forms.erlang_b(load)
        found.append(Case(f"Erlang B, load {load}", bounded(load, 0), share, learning, dropped))
    for load, places in ((0.8, 5), (1.2, 10)):
        share = closed_forms.md1k_drop_fraction(load, places)
        settings = bounded(load, places - 1)
        found.append(Case(f"M/D/1/{places}, load {load}", settings, share, learning, dropped))
    return tuple(found)


def compare(case: Case, *, seeds: int = 3, duration: float = 4.0) -> Comparison:
    """Measures a case.

    Args:
        case: What to measure.
        seeds: How many simulations, of seeds 1, 2, ...
        duration: Seconds of each, of which a tenth is warm-up.
    """
    replicas = []
    for seed in range(1, seeds + 1):
        settings = dataclasses.replace(
            case.settings, seed=seed, duration=duration, warmup=duration / 10
        )
        replicas.append(_by_host(simulate(settings), case))
    values = np.concatenate(replicas)
    error = float(values.std(ddof=1) / len(values) ** 0.5)
    return Comparison(case, float(values.mean()), error)


def _by_host(result: Result, case: Case) -> np.ndarray:
    counts = result.counts[: case.settings.num_hosts, case.of]
    whole = layout.STARTED if case.counted == layout.WAITED else layout.OFFERED
    return counts[:, case.counted] / counts[:, whole]
