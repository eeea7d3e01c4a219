"""Drops that were recorded, or simulated, beforehand: a trace, replayed exchange by exchange."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rps_jax.channels.channel import ALL_GATHER, REDUCE_SCATTER
from rps_jax.checks import is_integer
from rps_jax.delivery import Delivery

_FORMAT = 1


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Trace:
    """Replays one iteration of a trace at each exchange, and begins anew after the last.

    Host h of the trace is worker h, also where it is the server of whatever block the shift gives
    it: what was dropped between two hosts is dropped between the same two workers.

    A worker unpacks its own messages alone, O(num_workers); the whole trace stays packed where
    every worker can read it. It is data, like a batch: a compiled function that takes it as an
    argument is compiled as fast as any, while one that closes over it holds it as a constant.

    Attributes:
        arrived: uint8 `[iterations, 2, num_hosts, num_hosts, ceil(packets / 8)]`: whether a packet
            arrived, by iteration, phase (0 the reduce-scatter, 1 the all-gather), source,
            destination and packet, the packets packed as by `numpy.packbits(..., axis=-1)`. What a
            worker sends itself arrives, whatever stands there.
        packets: how many packets a message is cut into, an integer of at least 1.
        start: the iteration that the first exchange replays, an integer.
        shifts: int32 `[iterations]`: block j was served by host (j + shift) mod num_hosts; None
            where that was not recorded, and whoever replays it draws.

    Raises:
        ValueError: by `sample`, of numbers that do not fit together.

    >>> arrived = np.ones((1000, 2, 16, 16, 5), bool)
    >>> trace = Trace(np.packbits(arrived, axis=-1), packets=5)
    >>> delivery, state = trace.sample(trace.init(16), jax.random.key(0), 3, num_workers=16)
    >>> delivery.gathered.shape
    (16, 5)
    """

    arrived: jax.Array | np.ndarray
    packets: int = dataclasses.field(metadata={"static": True})
    start: int = dataclasses.field(default=0, metadata={"static": True})
    shifts: jax.Array | np.ndarray | None = None

    @classmethod
    def load(cls, path: str | os.PathLike[str], start: int = 0) -> "Trace":
        """Reads a trace that `save` wrote, into host memory.

        Args:
            path: an `.npz` file of the arrays `arrived`, `packets` and, where they were recorded,
                `shifts`, as above, and `format`, 1.
            start: the iteration that the first exchange replays.

        Raises:
            OSError: the file is missing or cannot be read.
            ValueError: it holds no trace, or one of another format, or `start` lies beyond it; a
                line that begins with the path.
        """
        with open(path, "rb") as opened:
            try:
                with np.load(opened) as file:
                    version, packets = file["format"], file["packets"]
                    arrived = file["arrived"]
                    shifts = file.get("shifts")
            # A damaged file is told in as many ways as zip, zlib and NumPy have of reading it.
            except Exception:
                raise ValueError(
                    f"{path}: expected a trace, an .npz file of format, packets and arrived"
                ) from None
        for name, value in (("format", version), ("packets", packets)):
            if value.shape != () or not np.issubdtype(value.dtype, np.integer):
                raise ValueError(f"{path}: {name}={value.tolist()!r:.80}: expected an integer")
        if version != _FORMAT:
            raise ValueError(f"{path}: format={version}: expected {_FORMAT}")
        trace = cls(arrived, int(packets), start, shifts)
        try:
            trace._check()
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        return trace

    def save(self, path: str | os.PathLike[str], description: dict[str, Any] | None = None) -> None:
        """Writes the trace, whole or not at all; `start` is not kept.

        Args:
            path: of the `.npz` file.
            description: JSON values about the trace, kept in the file beside it as `description`.

        Raises:
            OSError: the file cannot be written.
            ValueError: the numbers do not fit together.
        """
        self._check()
        path = Path(path)
        arrays = {
            "arrived": np.asarray(self.arrived),
            "packets": np.int64(self.packets),
            "format": np.int64(_FORMAT),
            "description": np.array(json.dumps(description or {})),
        }
        if self.shifts is not None:
            arrays["shifts"] = np.asarray(self.shifts)
        unfinished = path.with_name(path.name + ".tmp")
        try:
            with unfinished.open("wb") as file:
                np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)

    @property
    def num_hosts(self) -> int:
        """How many hosts there are, and so workers."""
        return self.arrived.shape[2]

    def init(self, num_workers: int) -> jax.Array:
        """Returns the iteration that is replayed next, int32 scalar: `start`."""
        del num_workers
        return jnp.int32(self.start)

    def sample(
        self, state: jax.Array, key: jax.Array, worker: jax.Array | int, num_workers: int
    ) -> tuple[Delivery, jax.Array]:
        """Returns one iteration as `worker` sees it; see `Channel.sample`.

        Args:
            state: the iteration to replay. Where it is traced and lies beyond the end, the trace
                begins anew.
            key: not used.
            worker: this worker's index.
            num_workers: how many workers take part.

        Raises:
            ValueError: the trace is malformed, has not as many hosts as there are workers, or has
                no iteration of this number.
        """
        del key
        self._check()
        iterations = self.arrived.shape[0]
        if num_workers != self.num_hosts:
            raise ValueError(
                f"num_workers={num_workers}: expected {self.num_hosts}, the hosts of the trace"
            )
        if not isinstance(state, jax.core.Tracer) and not 0 <= int(state) < iterations:
            raise ValueError(f"state={state}: expected an iteration in [0, {iterations})")
        arrived, me = jnp.asarray(self.arrived), jnp.asarray(worker, jnp.int32)
        iteration = state % iterations
        myself = (jnp.arange(num_workers) == me)[:, None]

        def unpack(bytes_WxB: jax.Array) -> jax.Array:
            bits_WxP = jnp.unpackbits(bytes_WxB, axis=1, count=self.packets)
            return bits_WxP.astype(bool) | myself

        delivery = Delivery(
            sent=unpack(arrived[iteration, REDUCE_SCATTER, me]),
            received=unpack(arrived[iteration, REDUCE_SCATTER, :, me]),
            gathered=unpack(arrived[iteration, ALL_GATHER, :, me]),
            shift=None if self.shifts is None else jnp.asarray(self.shifts)[iteration],
        )
        return delivery, (iteration + 1) % iterations

    def _check(self) -> None:
        """Raises `ValueError` for numbers that do not fit together."""
        shape, dtype = self.arrived.shape, self.arrived.dtype
        for name in ("packets", "start"):
            value = getattr(self, name)
            if not is_integer(value):
                raise ValueError(f"{name}={value!r}: expected an integer")
        if self.packets < 1:
            raise ValueError(f"packets={self.packets}: expected at least 1")
        expected = (*shape[:1], 2, *shape[2:3], *shape[2:3], -(-self.packets // 8))
        if shape != expected or 0 in shape or dtype != jnp.uint8:
            raise ValueError(
                f"arrived has shape {shape} and dtype {dtype}: expected uint8 (iterations, 2, "
                f"num_hosts, num_hosts, {-(-self.packets // 8)}), for {self.packets} packets"
            )
        shifts = self.shifts
        if shifts is not None and (shifts.shape != shape[:1] or shifts.dtype != jnp.int32):
            raise ValueError(
                f"shifts has shape {shifts.shape} and dtype {shifts.dtype}: expected int32 "
                f"({shape[0]},), one for each iteration"
            )
        if not 0 <= self.start < shape[0]:
            raise ValueError(f"start={self.start}: expected an iteration in [0, {shape[0]})")
