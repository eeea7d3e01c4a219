"""Tables, in Markdown and as CSV files."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """Returns the lines of a table.

    Args:
        header: Name of each column.
        rows: Cells, as many as columns; shown by `str`.
    """

    def line(cells: Sequence[Any]) -> str:
        return f"| {' | '.join(map(str, cells))} |"

    return [line(header), "|---" * len(header) + "|", *map(line, rows)]


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Writes rows of one shape."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
