"""Progress bars, on a terminal only."""

import sys
from typing import Any

from tqdm import tqdm

REMAINING = "{desc} {bar} {remaining}"
"""A bar with an estimate of the time left."""


def make_bar(description: str, total: float, *, shown: bool = True, **options: Any) -> Any:
    """Returns a progress bar that leaves nothing behind on the screen.

    Args:
        description: What goes on.
        total: How much there is to do.
        shown: Whether to show it, where stderr is a terminal.
        options: Further options of `tqdm`.
    """
    return tqdm(
        desc=description,
        total=total,
        dynamic_ncols=True,
        leave=False,
        disable=not (shown and sys.stderr.isatty()),
        **options,
    )
