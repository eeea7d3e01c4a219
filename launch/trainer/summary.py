"""What is left of a run that is done: its summary and its picture."""

from typing import Any

import rps_jax as rps
from launch.channels import CHANNELS
from launch.cli.command_line import UsageError
from launch.config import TrainConfig, simulates_drops
from launch.json_objects import is_number, write_json
from launch.reports.provenance import machine, versions
from launch.trainer.setup import Setup

Summary = dict[str, Any]


def summarise(setup: Setup, wall_seconds: float) -> Summary:
    """Writes the summary and the picture of a run; returns the summary.

    Args:
        setup: The training.
        wall_seconds: How long it took.

    Raises:
        UsageError: The metrics of the last step are not in the run directory.
    """
    config, directory, step = setup.config, setup.directory, setup.schedule.total_steps
    lines = directory.read_metrics()
    if not lines or lines[-1]["step"] != step:
        raise UsageError(f"{directory.metrics}: expected the metrics of step {step:,} in it")
    summary = {
        **{name: value for name, value in lines[-1].items() if is_number(value)},
        "score": setup.task.score,
        "algorithm": config.algorithm,
        "network": config.network,
        "drop_rate": config.drop_rate if simulates_drops(config) else None,
        "num_workers": config.num_workers,
        "model_state": config.model_state,
        "data": setup.data,
        "wall_seconds": round(wall_seconds, 2),
        "devices": setup.devices,
        "machine": machine(),
        "versions": versions("jax", "flax", "optax", "numpy") | {"rps_jax": rps.__version__},
    }
    write_json(directory.summary, summary)
    from launch.reports.curves import draw_curves  # Late: Matplotlib takes half a second.

    title = f"{setup.task.model_name} on {setup.data}: {setting(config)}"
    draw_curves(lines, setup.task.score, config.num_workers, title, directory.curves)
    return summary


def setting(config: TrainConfig) -> str:
    """Returns what a run averages and drops, for people."""
    workers = "1 worker" if config.num_workers == 1 else f"{config.num_workers} workers"
    if config.network == "udp":
        return f"{workers}, {config.algorithm}, over UDP"
    if not simulates_drops(config):
        return f"{workers}, {config.algorithm}"
    return f"{workers}, {config.algorithm}, {CHANNELS[config.channel].describe(config)}"
