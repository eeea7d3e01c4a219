"""Measures the web and the exchanges on a bed, and simulates the same."""

import dataclasses
import statistics
import time
from collections.abc import Iterator

import numpy as np

from launch.bed import Bed
from launch.benchmarks.colocation.config import DRAIN, WARMUP, WAYS, ColocationConfig, Way
from launch.benchmarks.group import Group
from launch.benchmarks.results import Row
from launch.benchmarks.worker import UDP, read_records
from rps_jax.colocation import simulate, with_discipline


def measure(
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
                plan = {"rate": rate, "seconds": seconds, "warmup": WARMUP, "drain": DRAIN}
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
                        row["records"] = [read_records(each) for each in trained]
                time.sleep(0.2)  # What is under way arrives.
                yield (web_load, way), row


def summary(several: list[Row]) -> Row:
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


def simulated(config: ColocationConfig, web_load: float, way: Way) -> Row:
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
