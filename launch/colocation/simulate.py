"""Simulates one setting: a table, or one JSON object."""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from launch.cli.command_line import expect, read_command
from launch.colocation.options import refusals, settings_of
from launch.colocation.waiting import SecondsBar
from launch.trainer.writing import check_can_write
from rps_jax.colocation import Result, Settings, layout, save_record, simulate


@dataclasses.dataclass(frozen=True)
class SimulateConfig(Settings):
    """Simulate a web service and a training job that share one switch.

    Times and drops are of the messages and packets that come after the warm-up and before the end
    of the duration. Then what is under way may still arrive, for up to --drain seconds.
    """

    record: Path | None = None
    """File (.npz) for what arrived of bursty learning, to train under: launch.train --trace."""
    json: bool = False
    """Print one JSON object instead of a table."""


def run(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    config = read_command(SimulateConfig, "launch.colocate simulate", argv, SimulateConfig())
    settings = settings_of(config)
    if config.record is not None:
        bursty = settings.learning == "bursty"
        expect("record", config.record, bursty, "--learning bursty, whose packets have places")
        whole = settings.duration >= settings.period
        expect("duration", settings.duration, whole, f"an iteration ({settings.period:.3g} s)")
        expect("record", config.record, config.record.suffix == ".npz", "a file named .npz")
        expect("record", config.record, not config.record.is_dir(), "a file, found a folder")
        check_can_write("record", config.record.parent)
    with refusals(), SecondsBar(settings.duration, quiet=config.json) as bar:
        result = simulate(settings, record=config.record is not None, progress=bar.move_to)
    if config.record is not None:
        save_record(config.record, settings, result)
    if config.json:
        print(json.dumps(result.summary() | _details(result, settings)))
    else:
        _print_table(settings, result)
    return 0


def _details(result: Result, settings: Settings) -> dict[str, Any]:
    """Returns what else may be asked: mean waits at each hop, in us, and packets of the web."""
    details: dict[str, Any] = {}
    hops = result.counts.reshape(2, settings.num_hosts, 2, 4).sum(1)
    for hop, name in enumerate(("nic", "switch")):
        for kind, of in (("web", layout.WEB_CLASS), ("learning", layout.LEARNING_CLASS)):
            started, waited = hops[hop, of, layout.STARTED], hops[hop, of, layout.WAITED]
            details[f"{name}_{kind}_wait_us"] = 1e6 * waited / started if started else None
    return details | {name: result.totals[name] for name in ("retransmissions", "time_outs")}


def _print_table(settings: Settings, result: Result) -> None:
    found = result.summary() | _details(result, settings)
    parameters = ", ".join(f"{key} {value:g}" for key, value in settings.params.items())
    print(f"{'discipline':<23}{settings.discipline}{f' ({parameters})' if parameters else ''}")

    def row(name: str, text: str, *values: Any) -> None:
        missing = any(value is None for value in values)
        print(f"{name:<23}{'-' if missing else text.format(*values)}")

    row("mean completion", "{:.4g} ms", found["mean_completion_ms"])
    row("99th percentile", "{:.4g} ms", found["p99_completion_ms"])
    row("messages complete", "{:,}", found["completed"])
    row("not complete", "{:,}", found["unfinished"])
    row("retransmissions", "{:,} ({:,} time-outs)", found["retransmissions"], found["time_outs"])
    row("learning packets", "{:,}", found["learning_sent"])
    row("dropped", "{:,} ({:.2%})", found["learning_dropped"], found["learning_drop_fraction"])
    for kind in ("web", "learning"):
        waits = [found[f"{hop}_{kind}_wait_us"] for hop in ("nic", "switch")]
        row(f"{kind} packets wait", "{:.1f} us at the card, {:.1f} us at the switch", *waits)
    rate = result.packet_hops / result.wall_seconds / 1e6
    row("packet-hops", "{:,} ({:.1f} million a second)", result.packet_hops, rate)
    if found["unfinished"]:
        print(
            f"warning: {found['unfinished']:,} messages are not complete; the times above are of "
            "the others, and too low",
            file=sys.stderr,
        )
    if np.isnan(result.completion_ms).all() and settings.web_rate > 0:
        print("warning: no message was measured; try a longer --duration", file=sys.stderr)
