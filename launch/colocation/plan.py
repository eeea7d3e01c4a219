"""Plans a switch: how much training traffic must be dropped for a fast web service, if any."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np

from launch.cli.command_line import Seeds, Within, expect, read_command, refuse
from launch.cli.fields import POSITIVE
from launch.colocation.options import refusals, settings_of
from launch.colocation.sweep import Job, Values, default_processes, measure_all
from launch.colocation.target import Target
from launch.trainer.writing import check_can_write
from rps_jax.colocation import PARAMS, SettingError, Settings, layout, simulate, with_discipline
from rps_jax.colocation.traffic import learning_packets

COLUMNS = (
    "mean",
    "p99",
    "messages",
    "unfinished",
    "drop_fraction",
    "learning_wait_ms",
    "peak_bytes",
)
"""What is measured: completion times in ms, of the messages that complete; how many there are, and
how many do not complete; share of learning packets dropped, mean sum of a learning packet's waits
at its two ports, and the most bytes that waited at any port."""


@dataclasses.dataclass(frozen=True)
class PlanConfig(Settings):
    """Find out how much training traffic must be dropped for web messages to complete in time.

    Four ways are simulated on the same traffic: the web alone; one queue that drops nothing;
    strict priority, which drops nothing either; and one queue with the highest threshold that is
    fast enough, which drops the least. Points that are done already are not repeated.
    """

    target_ms: Annotated[float, POSITIVE._replace(expected="a time above 0")] = 3.0
    """Milliseconds in which a web message must complete."""
    of: Literal["mean", "p99"] = "mean"
    """What must be within the target: the mean, or 99 of 100 messages."""
    seeds: Seeds = (1, 2, 3)
    """A simulation of each way for every seed; what is printed is the mean over them."""
    processes: Annotated[int, Within(1, 1024)] = default_processes()
    """Simulations at once."""
    output_dir: Path = Path("runs/plan")
    """Folder of the points that are done."""


def run(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status: 1 if no way is fast enough."""
    config = read_command(PlanConfig, "launch.colocate plan", argv, PlanConfig())
    default = PlanConfig()
    for name in ("discipline", "seed", *{name for own in PARAMS.values() for name in own}):
        if getattr(config, name) != getattr(default, name):
            refuse(name, getattr(config, name), "none: the plan compares disciplines and seeds")
    settings = settings_of(config)
    expect("learning", "none", settings.learning != "none", "learning traffic to plan for")
    expect("web_rate", settings.web_rate, settings.web_rate > 0, "web messages to plan for")
    check_can_write("output_dir", config.output_dir)
    if settings.learning == "trace":
        with refusals():
            next(learning_packets(settings))  # Reads the file.

    def measure(settings: Settings) -> Values:
        try:
            settings.check()
        except SettingError:  # It is more than the links carry.
            return dict.fromkeys(COLUMNS, math.inf)
        jobs = [Job(dataclasses.replace(settings, seed=seed)) for seed in config.seeds]
        found = measure_all(point, jobs, config.output_dir / "points.jsonl", config.processes)
        of_seeds = {name: [values[name] for values in found] for name in COLUMNS}
        counts = {name: sum(of_seeds[name]) for name in ("messages", "unfinished")}
        means = {name: float(np.mean(values)) for name, values in of_seeds.items()}
        return means | counts | {"peak_bytes": max(of_seeds["peak_bytes"])}

    return _answer(Target(config.of, config.target_ms), config.seeds, settings, measure)


def point(job: Job) -> Values:
    """Simulates the settings of a job; returns what an operator asks about."""
    result = simulate(job.settings)
    found = result.summary()
    learning = result.counts[:, layout.LEARNING_CLASS]
    # Of a packet that crosses both its ports.
    waits = learning.reshape(2, -1, 4).sum(1)
    with np.errstate(invalid="ignore"):
        waited = waits[:, layout.WAITED] / waits[:, layout.STARTED]
    values = (
        found["mean_completion_ms"],
        found["p99_completion_ms"],
        len(result.completion_ms),
        found["unfinished"],
        found["learning_drop_fraction"],
        1000 * waited.sum(),
        result.peak_bytes.max(),
    )
    # Where there is nothing to measure, it is not a number.
    return {k: math.nan if v is None else float(v) for k, v in zip(COLUMNS, values, strict=True)}


def _answer(
    target: Target,
    seeds: Sequence[int],
    settings: Settings,
    measure: Callable[[Settings], Values],
) -> int:
    """Prints what each way comes to, and the answer; returns the exit status."""
    learning = f"{settings.learning_gbps:g} Gbps of {settings.learning} learning"
    if settings.learning_trace is not None:
        learning = f"the learning of {settings.learning_trace.name}"
    print(
        f"{settings.web_rate:g} web messages/s of {settings.message_bytes:,} bytes beside "
        f"{learning};\n"
        f"{target.what} to be at most {target.ms:g} ms. Seeds {', '.join(map(str, seeds))}.\n"
    )
    print(f"{'':<26}{'mean ms':>9}{'p99 ms':>9}{'dropped':>15}{'waits ms':>10}")

    def show(name: str, found: Values) -> str:
        verdict = target.verdict(found)
        if found[target.of] == math.inf:
            print(f"{name:<26}more than the links carry")
            return verdict
        none = math.isnan(found["learning_wait_ms"])  # There is no learning, or none gets through.
        dropped = "-" if none else f"{found['drop_fraction']:.2%}"
        wait = "-" if none else f"{found['learning_wait_ms']:.3g}"
        print(
            f"{name:<26}{found['mean']:>9.3g}{found['p99']:>9.3g}{dropped:>15}{wait:>10}"
            f"  {verdict}",
            flush=True,
        )
        if missing := found["unfinished"]:
            print(f"  {missing:,.0f} messages are not complete; times are of the others, too low")
        return verdict

    alone = measure(dataclasses.replace(settings, learning="none", learning_trace=None))
    if math.isnan(alone["mean"]):
        refuse("duration", settings.duration, "longer: no message is complete")
    if target.verdict(alone) == "open":
        longer = f"longer: {alone['unfinished']:,.0f} messages of the web alone are not complete"
        refuse("drain", settings.drain, longer)
    verdicts = [show("web alone", alone)]
    fifo = measure(with_discipline(settings, "fifo"))
    verdicts.append(show("one queue, no drops", fifo))
    strict = measure(with_discipline(settings, "strict-priority", learning_buffer_bytes=math.inf))
    verdicts.append(show("strict priority", strict))

    least = None
    if verdicts[1] != "ok":
        most = min(fifo["peak_bytes"], 2**30)
        threshold, least = target.highest_threshold(settings, measure, most)
        verdicts.append(show(f"threshold {threshold / 1000:,.1f} kB", least))
    print()
    return _say(target, verdicts, strict, least)


def _say(target: Target, verdicts: Sequence[str], strict: Values, least: Values | None) -> int:
    """Prints the answer and returns the exit status."""
    alone, as_it_is, first, *of_threshold = verdicts
    if as_it_is == "ok":
        print("Nothing has to be dropped, and the web needs no priority.")
        return 0
    if alone == "slow":
        print(f"No drop rate is enough: the web alone has a {target.what} above {target.ms:g} ms.")
        return 1
    assert least is not None
    if first == "ok":
        print(
            "Nothing has to be dropped: under strict priority, learning packets wait\n"
            f"{strict['learning_wait_ms']:.3g} ms on average, and up to "
            f"{strict['peak_bytes'] / 1e6:.3g} MB wait at a port."
        )
    if "ok" in of_threshold:
        print(f"With one queue and a threshold, {least['drop_fraction']:.1%} is dropped.")
    elif "slow" in of_threshold:
        print("One queue with a threshold is never fast enough.")
    if "open" in verdicts:
        print("Whether what is open is fast enough, a longer --drain would tell.")
    return 0 if "ok" in (first, *of_threshold) else 1
