"""A pytree as blocks of packets, moved together or where they lie, and back, exactly.

The leaves of each dtype are laid end to end, in the order of the tree, padded with zeros, and cut
into equal blocks of equal packets; so block j holds a contiguous share of every dtype.
"""

import itertools
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


def to_blocks(
    tree: Any, num_blocks: int, packets: int = 1
) -> tuple[list[jax.Array], Callable[[Sequence[jax.Array]], Any]]:
    """Cuts a pytree into `num_blocks` equal blocks of `packets` equal packets.

    Args:
        tree: any pytree of arrays: of any shapes (scalars and empty ones too) and any dtypes.
        num_blocks: at least 1.
        packets: packets a block, at least 1.

    Returns:
        `(blocks, from_blocks)`: one array `[num_blocks, packets, elements]` for each dtype that
        holds any element, in the order of first appearance; and the exact inverse.

    >>> blocks, from_blocks = to_blocks({"a": jnp.arange(5.0), "b": jnp.float32(7)}, num_blocks=4)
    >>> [block.shape for block in blocks]
    [(4, 1, 2)]
    >>> from_blocks(blocks)["a"]
    Array([0., 1., 2., 3., 4.], dtype=float32)
    """
    leaves, treedef, groups = _by_dtype(tree)

    def cut(group: list[int]) -> jax.Array:
        flat = jnp.concatenate([leaves[index].ravel() for index in group])
        padding = -flat.size % (num_blocks * packets)
        return jnp.pad(flat, (0, padding)).reshape(num_blocks, packets, -1)

    def from_blocks(blocks: Sequence[jax.Array]) -> Any:
        restored = list(leaves)
        for group, block in zip(groups, blocks, strict=True):
            flat, start = block.ravel(), 0
            for index in group:
                like = leaves[index]
                restored[index] = flat[start : start + like.size].reshape(like.shape)
                start += like.size
        return jax.tree.unflatten(treedef, restored)

    return [cut(group) for group in groups], from_blocks


class Piece(NamedTuple):
    """Part of a leaf whose rows lie each in one packet.

    Attributes:
        rows: `[packets, elements]`; equally long parts of neighbouring packets.
        packets: which packets, of those of all blocks.
        group: number of the leaves that are laid end to end with its own.
    """

    rows: jax.Array
    packets: slice
    group: int = 0


def to_pieces(
    tree: Any, num_blocks: int, packets: int = 1, *, kinds: Sequence[Hashable] | None = None
) -> tuple[list[Piece], Callable[[Sequence[jax.Array]], Any]]:
    """Cuts a pytree where its packets end, and moves nothing: no leaf is joined to another.

    Args:
        tree: any pytree of arrays, as for `to_blocks`.
        num_blocks: at least 1.
        packets: packets a block, at least 1.
        kinds: of each leaf; those of different kinds lie apart, as those of different dtypes do.

    Returns:
        `(pieces, from_pieces)`: at most three for each leaf, however many packets there are; and
        the exact inverse, of the pieces' rows. Packet k of block j has number j * packets + k.

    >>> pieces, _ = to_pieces({"a": jnp.arange(5.0), "b": jnp.float32(7)}, num_blocks=3)
    >>> [(piece.rows.tolist(), piece.packets) for piece in pieces]
    [([[0.0, 1.0], [2.0, 3.0]], slice(0, 2, None)), ([[4.0]], slice(2, 3, None)), \
([[7.0]], slice(2, 3, None))]
    """
    leaves, treedef, groups = _by_dtype(tree, kinds)
    cut: list[list[Piece]] = [[] for _ in leaves]
    for number, group in enumerate(groups):
        elements = -(-sum(leaves[index].size for index in group) // (num_blocks * packets))
        start = 0
        for index in group:
            cut[index] = _cut_leaf(leaves[index], start, elements, number)
            start += leaves[index].size

    def from_pieces(rows: Sequence[jax.Array]) -> Any:
        rest = iter(rows)
        restored = list(leaves)
        for index, pieces in enumerate(cut):
            if pieces:
                flat = jnp.concatenate([next(rest).ravel() for _ in pieces])
                restored[index] = flat.reshape(leaves[index].shape)
        return jax.tree.unflatten(treedef, restored)

    return [piece for pieces in cut for piece in pieces], from_pieces


def _by_dtype(
    tree: Any, kinds: Sequence[Hashable] | None = None
) -> tuple[list[jax.Array], Any, list[list[int]]]:
    """Returns the leaves, their structure, and which of them share a dtype and, if given, a kind.

    Of the empty ones none do.
    """
    leaves, treedef = jax.tree.flatten(tree)
    # Empty ones anew: one that is handed on ends XLA on CPUs (jax 0.11.2).
    leaves = [jnp.asarray(leaf) if jnp.size(leaf) else jnp.zeros_like(leaf) for leaf in leaves]
    groups: dict[Any, list[int]] = {}
    for index, leaf in enumerate(leaves):
        if leaf.size:
            groups.setdefault((leaf.dtype, kinds and kinds[index]), []).append(index)
    return leaves, treedef, list(groups.values())


def _cut_leaf(leaf: jax.Array, start: int, elements: int, group: int) -> list[Piece]:
    """Cuts a leaf that begins at element `start` of packets of so many elements."""
    stop = start + leaf.size
    # The rest of the packet that it begins in, whole packets, and the beginning of the last.
    whole_from = min(-(-start // elements) * elements, stop)
    whole_to = max(stop // elements * elements, whole_from)
    flat, pieces = leaf.ravel(), []
    for begin, end in itertools.pairwise((start, whole_from, whole_to, stop)):
        if begin < end:
            count, first = max(1, (end - begin) // elements), begin // elements
            rows = flat[begin - start : end - start].reshape(count, -1)
            pieces.append(Piece(rows, slice(first, first + count), group))
    return pieces
