"""Tables: for a terminal, in Markdown, and as CSV files."""

import csv
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

_COLUMNS = 80
"""Of a terminal."""


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """Returns the lines of a table.

    Args:
        header: Name of each column.
        rows: Cells, as many as columns; shown by `str`.
    """

    def line(cells: Sequence[Any]) -> str:
        return f"| {' | '.join(map(str, cells))} |"

    return [line(header), "|---" * len(header) + "|", *map(line, rows)]


def text_table(header: Sequence[str], rows: Iterable[tuple[str, Sequence[Any]]]) -> list[str]:
    """Returns the lines of a table for a terminal, which seven columns of numbers fit.

    What a cell says beyond a ± stands below it, and so do labels that leave no room for the cells.

    Args:
        header: Name of each column of cells; long ones are broken.
        rows: Label and cells, as many as columns; shown by `str`, None not at all.
    """
    broken = [textwrap.wrap(name, 9) for name in header]
    height = max(map(len, broken))
    heads = [[""] * (height - len(lines)) + lines for lines in broken]
    shown = [(label, list(map(_stacked, cells))) for label, cells in rows]
    stacks = [heads, *(cells for _, cells in shown)]
    widths = [max(len(x) for cells in stacks for x in cells[i]) for i in range(len(header))]
    beside = max(len(label) for label, _ in shown) + sum(widths) + 2 * len(widths) <= _COLUMNS
    first = max(len(label) for label, _ in shown) if beside else 0

    def lines(label: str, cells: Sequence[Sequence[str]]) -> Iterator[str]:
        for place, words in enumerate(zip_longest(*cells, fillvalue="")):
            aligned = (f"  {word:>{width}}" for word, width in zip(words, widths, strict=True))
            name = label if beside and place == 0 else ""
            yield f"{name:<{first}}{''.join(aligned)}".rstrip()

    table = list(lines("", heads))
    for label, cells in shown:
        table += [*([] if beside else textwrap.wrap(label, _COLUMNS)), *lines(label, cells)]
    return table


def _stacked(cell: Any) -> list[str]:
    """Returns the lines of a cell: what it says beyond a ± stands below."""
    return ("" if cell is None else str(cell)).replace(" ±", "\n±").split("\n")


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Writes rows of one shape."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
