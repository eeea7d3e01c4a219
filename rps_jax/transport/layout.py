"""A pytree as packets of bytes, block by block, and their averages.

Packet p of a block holds slice p of every dtype's block, as `rps_jax.blocks` cuts them: what the
wire drops is what a channel with as many packets drops.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rps_jax.blocks import to_blocks

MOST_BYTES = 1400
"""Largest payload: with headers, one Ethernet frame of 1500 bytes."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the blocks of a pytree lie in packets.

    Attributes:
        packets: how many packets a block has.
        parts: dtype and number of elements of each dtype's slice of a packet.
    """

    packets: int
    parts: tuple[tuple[np.dtype, int], ...]

    @property
    def length(self) -> int:
        """Bytes of a payload."""
        return sum(dtype.itemsize * elements for dtype, elements in self.parts)

    def average(self, rows: np.ndarray, arrived: np.ndarray) -> np.ndarray:
        """Averages packets over the workers whose packets arrived.

        Args:
            rows: uint8 `[num_workers, packets, length]`.
            arrived: bool `[num_workers, packets]`; of every packet at least one arrived.

        Returns:
            uint8 `[packets, length]`. Floats of 16 bits or fewer are summed in float32 and rounded
            once; integers are rounded to the nearest.
        """
        average = np.empty(rows.shape[1:], np.uint8)
        start = 0
        for dtype, elements in self.parts:
            end = start + dtype.itemsize * elements
            integer = jnp.issubdtype(dtype, jnp.integer)
            wide = np.int64 if integer else max(dtype, np.dtype(np.float32), key=_width)
            total = np.zeros((self.packets, elements), wide)
            for worker, mask in zip(rows, arrived, strict=True):
                values = np.ascontiguousarray(worker[:, start:end]).view(dtype)
                # Select, never multiply by the mask: what did not arrive is whatever lay there.
                np.add(total, values.astype(wide), out=total, where=mask[:, None])
            count = arrived.sum(0, dtype=np.int64)[:, None].astype(wide)
            mean = (total + count // 2) // count if integer else total / count
            average[:, start:end] = mean.astype(dtype).view(np.uint8)
            start = end
        return average


def _width(dtype: np.dtype) -> int:
    return dtype.itemsize


def layout_of(tree: Any, num_workers: int) -> Layout:
    """Returns the layout of a pytree: as few packets as its blocks fit in.

    Args:
        tree: a pytree of arrays, or of their shapes and dtypes.
        num_workers: how many blocks there are.

    Raises:
        TypeError: a leaf that has no bytes to average (a boolean, a complex number, a PRNG key).
    """
    sizes: dict[np.dtype, int] = {}
    for path, leaf in jax.tree.leaves_with_path(tree):
        dtype = jnp.result_type(leaf)
        real = jnp.issubdtype(dtype, jnp.integer) or jnp.issubdtype(dtype, jnp.floating)
        if not real:
            raise TypeError(
                f"leaf {jax.tree_util.keystr(path) or 'params'} has dtype {dtype}: expected a "
                "floating or integer dtype, which datagrams can carry"
            )
        if size := int(np.prod(np.shape(leaf))):
            sizes[np.dtype(dtype)] = sizes.get(np.dtype(dtype), 0) + size
    packets = 1
    while True:
        parts = tuple((dtype, -(-size // (num_workers * packets))) for dtype, size in sizes.items())
        layout = Layout(packets, parts)
        if layout.length <= MOST_BYTES:
            return layout
        packets = max(packets + 1, packets * layout.length // MOST_BYTES)


def pack(tree: Any, layout: Layout, num_workers: int) -> tuple[jax.Array, Any]:
    """Returns a pytree as uint8 `[num_workers, packets, length]`, and the way back."""
    blocks, from_blocks = to_blocks(tree, num_workers, layout.packets)

    def unpack(rows: jax.Array) -> list[jax.Array]:
        parts, start = [], 0
        for block in blocks:
            end = start + block.shape[2] * block.dtype.itemsize
            parts.append(_from_bytes(rows[:, :, start:end], block.dtype))
            start = end
        return parts

    def restore(rows: jax.Array, arrived: jax.Array, otherwise: Sequence[jax.Array]) -> Any:
        """Rebuilds the pytree of what arrived, `otherwise` where nothing did."""
        mask = arrived[:, :, None]
        chosen = [jnp.where(mask, *pair) for pair in zip(unpack(rows), otherwise, strict=True)]
        return from_blocks(chosen)

    rows = [_to_bytes(block) for block in blocks]
    empty = jnp.zeros((num_workers, layout.packets, 0), jnp.uint8)
    return jnp.concatenate([empty, *rows], axis=2), restore


def _to_bytes(block: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(block, jnp.uint8).reshape(*block.shape[:2], -1)


def _from_bytes(rows: jax.Array, dtype: Any) -> jax.Array:
    size = jnp.dtype(dtype).itemsize
    shape = (*rows.shape[:2], rows.shape[2] // size) + ((size,) if size > 1 else ())
    return jax.lax.bitcast_convert_type(rows.reshape(shape), dtype)
