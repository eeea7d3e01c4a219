"""How the tables and pictures of a folder were made."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launch.config import TrainConfig
from launch.figures.paper import Scale
from launch.json_objects import write_json
from launch.reports.provenance import command_line, trained_on

_SETTINGS = (
    "preset",
    "num_workers",
    "epochs",
    "batch_size",
    "optimizer",
    "learning_rate",
    "schedule",
    "momentum",
    "weight_decay",
    "clip_norm",
    "dtype",
)


def write_run(
    folder: Path,
    command: str,
    options: Any,
    scale: Scale,
    config: TrainConfig,
    summaries: Sequence[dict[str, Any]],
) -> None:
    """Writes `run.json`: the command, what was trained, on what, and how long it took.

    Args:
        folder: Where.
        command: Subcommand of launch.reproduce.
        options: Options of the command.
        scale: Scale of the trainings.
        config: What they have in common.
        summaries: One of each training.
    """
    elsewhere = ("data_path", "time_limit", "runs_dir", "output_dir")
    write_json(
        folder / "run.json",
        {
            "command": command_line(f"launch.reproduce {command}", options, elsewhere),
            "settings": {name: getattr(config, name) for name in _SETTINGS},
            "reduced": scale.reduced or None,
            "data": summaries[0]["data"],
            "trained_on": trained_on(summaries),
        },
    )
