"""What arrived in each exchange, as workers report it, and the trace that it makes."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from launch.cli.command_line import CommandError
from launch.trainer.record import picture_of
from rps_jax.transport import Exchanged
from rps_jax.transport.recording import Recorded, trace_of_recorded

LONGEST_BYTES = 1 << 20
"""Of the payload of a message, unless one exchange has more."""
_MOST_EXCHANGES = 4096
"""In a message, whose header names them."""


def encode(records: Sequence[Exchanged]) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Yields headers and payloads of the deliveries of exchanges."""
    recorded = list(map(Recorded.of, records))
    if not recorded:
        return
    count = min(max(LONGEST_BYTES // recorded[0].arrived.nbytes, 1), _MOST_EXCHANGES)
    for start in range(0, len(recorded), count):
        part = recorded[start : start + count]
        header = {
            "packets": part[0].packets,
            "exchanges": [seen.exchange for seen in part],
            "shifts": [seen.shift for seen in part],
        }
        yield header, np.stack([seen.arrived for seen in part]).tobytes()


class NotRecorded(CommandError):
    """There is nothing to make a trace of."""


class Deliveries:
    """The deliveries of all workers."""

    def __init__(self, num_workers: int, path: Path | None) -> None:
        """Has none.

        Args:
            num_workers: How many workers there are.
            path: Where the trace goes; None if there is to be none.
        """
        self._path = path
        self._records: list[list[Recorded]] = [[] for _ in range(num_workers)]

    def add(self, worker: int, header: dict[str, Any], payload: bytes) -> None:
        """Adds what a worker has reported."""
        packets, numbers = header["packets"], header["exchanges"]
        shape = len(numbers), 2, len(self._records), -(-packets // 8)
        arrived = np.frombuffer(payload, np.uint8).reshape(shape)
        for number, shift, rows in zip(numbers, header["shifts"], arrived, strict=True):
            self._records[worker].append(Recorded(number, shift, packets, rows))

    def save(self, title: str) -> None:
        """Writes the trace of the exchanges that all workers took part in, if one is wanted.

        Args:
            title: Above its picture.

        Raises:
            NotRecorded: There are none.
        """
        if self._path is None:
            return
        try:
            trace = trace_of_recorded(self._records)
        except ValueError as error:
            raise NotRecorded(f"--record {self._path}: no trace is written ({error})") from None
        self._path.parent.mkdir(parents=True, exist_ok=True)
        trace.save(self._path)
        self._say_what_is_missing(len(trace.arrived))
        from launch.reports.drops import draw_drops  # Late: Matplotlib takes half a second.

        draw_drops(trace, title, picture_of(self._path))

    def _say_what_is_missing(self, written: int) -> None:
        """Says of which exchanges the trace is, where it is not of all: they are counted from 0."""
        of_workers = [{seen.exchange for seen in of_worker} for of_worker in self._records]
        total = 1 + max(map(max, of_workers))
        if written == total:
            return
        least = [worker for worker, known in enumerate(of_workers) if len(known) < total]
        print(
            f"{self._path} has {written:,} of {total:,} exchanges: not those of which nothing was "
            f"reported by {'workers' if len(least) > 1 else 'worker'} "
            f"{', '.join(map(str, least))}",
            flush=True,
        )
