"""What the drops that were measured cost a training."""

import itertools
import shutil
from collections.abc import Sequence
from pathlib import Path

from data import Source
from launch.benchmarks.results import Row
from launch.config import parse
from launch.trainer.many_runs import train_all
from rps_jax.transport import trace_of


def save_trace(path: Path, several: list[Row]) -> None:
    """Writes what arrived in all rounds of a setting."""
    by_worker = zip(*(one["records"] for one in several), strict=True)
    trace_of([list(itertools.chain(*records)) for records in by_worker]).save(path)


def final_losses(
    folder: Path,
    flags: Sequence[str],
    source: Source,
    traces: Sequence[Path | None],
    seeds: Sequence[int],
) -> list[list[float]]:
    """Trains under the drops of traces, each from its beginning again and again.

    Args:
        folder: For the runs; what is there is removed.
        flags: Of launch.train, for all runs.
        source: Their data.
        traces: Files; None drops nothing.
        seeds: A training for each.

    Returns:
        For each trace the training loss of the mean model at the end, a seed each.
    """
    shutil.rmtree(folder, ignore_errors=True)
    runs = []
    for trace in traces:
        channel = ["--channel", "trace", "--trace", str(trace)] if trace else ["--drop-rate", "0"]
        for seed in seeds:
            run = folder / f"{trace.stem if trace else 'reliable'}-{seed}"
            own = ["--seed", str(seed), "--output-dir", str(run)]
            runs.append(parse([*flags, *channel, *own]))
    last = [lines[-1]["mean_model_train_loss"] for lines in train_all(runs, source)]
    return [last[start : start + len(seeds)] for start in range(0, len(last), len(seeds))]
