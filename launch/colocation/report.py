"""What a figure leaves behind: its numbers, its table, and how it was made."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launch.json_objects import write_json
from launch.reports.provenance import command_line, machine, versions
from launch.reports.tables import write_csv


def write_results(
    command: str,
    config: Any,
    simulated: dict[str, Any],
    rows: Sequence[dict[str, Any]],
    table: str,
    flags: Sequence[str] = (),
) -> None:
    """Writes a figure's numbers, its table, and how it was made; prints the table.

    Args:
        command: Subcommand of launch.colocate; names the file of numbers.
        config: Its options.
        simulated: Settings of the simulation.
        rows: The numbers, of one shape.
        table: In Markdown.
        flags: Flags of launch.train that came after "--".
    """
    folder = config.output_dir
    write_csv(folder / f"{command}.csv", rows)
    (folder / "table.md").write_text(table)
    _write_run(folder, command, config, simulated, flags)
    print(f"{table}\nresults in {folder}/")


def of_unfinished(unfinished: int) -> list[str]:
    """Returns the lines that stand below a table of which some messages are missing."""
    if not unfinished:
        return []
    return ["", f"{unfinished} messages did not complete; means are of the others."]


def _write_run(
    folder: Path,
    command: str,
    config: Any,
    simulated: dict[str, Any],
    flags: Sequence[str],
) -> None:
    """Writes `run.json`: the command with all its options, the settings, versions, and machine."""
    elsewhere = ("processes", "output_dir")
    write_json(
        folder / "run.json",
        {
            "command": command_line(f"launch.colocate {command}", config, elsewhere, flags),
            "settings": simulated,
            "versions": versions("jax", "numba", "numpy"),
            "machine": machine(),
        },
    )
