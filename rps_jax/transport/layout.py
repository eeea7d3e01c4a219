"""A pytree as packets of bytes, block by block, and their averages.

Packet p of a block holds slice p of every dtype's block, as `rps_jax.blocks` cuts them: what the
wire drops is what a channel with as many packets drops.
"""

import dataclasses
import zlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_BYTE = 8


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the blocks of a pytree lie in packets.

    Attributes:
        packets: how many packets a block has.
        parts: dtype and number of elements of each dtype's slice of a packet.
        digest: of the pytree's structure, shapes and dtypes, below 2^32.
    """

    packets: int
    parts: tuple[tuple[np.dtype, int], ...]
    digest: int = 0

    @property
    def length(self) -> int:
        """Bytes of a payload."""
        return sum(dtype.itemsize * elements for dtype, elements in self.parts)

    def rows(self, blocks: Sequence[np.ndarray], num_workers: int) -> np.ndarray:
        """Returns the packets of blocks.

        Args:
            blocks: of each dtype `[num_workers, packets, elements]`, as `to_blocks` cuts them.
            num_workers: how many blocks there are.

        Returns:
            uint8 `[num_workers, packets, length]`; a view where there is one dtype alone.
        """
        parts = [block.view(np.uint8) for block in blocks]
        if len(parts) == 1:
            return parts[0]
        return np.concatenate([np.empty((num_workers, self.packets, 0), np.uint8), *parts], axis=2)

    def blocks(self, rows: np.ndarray) -> list[np.ndarray]:
        """Returns the blocks in packets, the inverse of `rows`: views.

        Args:
            rows: uint8 `[..., packets, length]`.

        Returns:
            Of each dtype `[..., packets, elements]`.
        """
        views, start = [], 0
        for dtype, elements in self.parts:
            end = start + dtype.itemsize * elements
            views.append(rows[..., start:end].view(dtype))
            start = end
        return views

    def average(self, rows: np.ndarray, arrived: np.ndarray) -> np.ndarray:
        """Averages packets over the workers whose packets arrived.

        Args:
            rows: uint8 `[num_workers, packets, length]`; they are overwritten.
            arrived: bool `[num_workers, packets]`; of every packet at least one arrived.

        Returns:
            uint8 `[packets, length]`, where the first of the rows was. Floats of 16 bits or fewer
            are summed in float32 and rounded once; integers are rounded to the nearest.
        """
        # Select, never multiply by the mask: what did not arrive is whatever lay there. All bits
        # zero is the number zero in every dtype.
        rows[~arrived] = 0
        count = arrived.sum(0)[:, None]
        for values in self.blocks(rows):
            if jnp.issubdtype(values.dtype, jnp.integer):
                values[0] = _mean_of_integers(values, count)
                continue
            narrow = values.dtype.itemsize < np.dtype(np.float32).itemsize
            wide = np.dtype(np.float32) if narrow else values.dtype
            total = values[0].astype(wide, copy=False)
            for value in values[1:]:
                total += value.astype(wide, copy=False)  # += casts halves five times as slowly.
            total /= count.astype(total.dtype)
            values[0] = total
        return rows[0]


def _mean_of_integers(values: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Returns the means over the first axis, rounded to the nearest.

    By sums of the upper and of the lower halves of their bits, which do not overflow.
    """
    signed = jnp.issubdtype(values.dtype, jnp.signedinteger)
    wide = values.astype(np.int64 if signed else np.uint64)
    upper, lower = (wide >> 32).sum(0), (wide & 0xFFFFFFFF).sum(0)
    divisor = count.astype(wide.dtype)
    rest = ((upper % divisor) << 32) + lower + divisor // 2
    mean: np.ndarray = ((upper // divisor) << 32) + rest // divisor
    return mean


def layout_of(tree: Any, num_workers: int, most_bytes: int) -> Layout:
    """Returns the layout of a pytree: as few packets as its blocks fit in.

    Args:
        tree: a pytree of arrays, or of their shapes and dtypes.
        num_workers: how many blocks there are.
        most_bytes: of a packet's payload; enough for a number of each dtype.

    Raises:
        TypeError: a leaf that has no bytes to average (a boolean, a complex number, a PRNG key, a
            number of 4 bits).
    """
    sizes: dict[np.dtype, int] = {}
    described = []
    for path, leaf in jax.tree.leaves_with_path(tree):
        dtype = jnp.result_type(leaf)
        described.append((jax.tree_util.keystr(path), jnp.shape(leaf), str(dtype)))
        real = jnp.issubdtype(dtype, jnp.integer) or jnp.issubdtype(dtype, jnp.floating)
        if not real or jax.dtypes.itemsize_bits(dtype) < _BYTE:
            raise TypeError(
                f"leaf {jax.tree_util.keystr(path) or 'params'} has dtype {dtype}: expected a "
                "floating or integer dtype of at least 8 bits, which datagrams can carry"
            )
        if size := int(np.prod(np.shape(leaf))):
            sizes[np.dtype(dtype)] = sizes.get(np.dtype(dtype), 0) + size
    packets, digest = 1, zlib.crc32(repr(described).encode())
    while True:
        parts = tuple((dtype, -(-size // (num_workers * packets))) for dtype, size in sizes.items())
        layout = Layout(packets, parts, digest)
        if layout.length <= most_bytes:
            return layout
        packets = max(packets + 1, packets * layout.length // most_bytes)
