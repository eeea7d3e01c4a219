"""Blocks and pieces: two ways to cut a pytree into the same packets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rps_jax.blocks import to_blocks, to_pieces

TREES = {
    "shorter than a packet": [(1,), (), (2,)],
    "over many packets": [(7, 5), (3,), (40,)],
    "as long as packets": [(4,), (8,), (12,)],
    "with empty leaves": [(0, 3), (5,), (0,)],
    "nothing": [],
}


def numbered(shapes: list[tuple[int, ...]]) -> list[jax.Array]:
    """Leaves of two dtypes in turn, whose elements are all different."""
    sizes = [int(np.prod(shape)) for shape in shapes]
    starts = np.cumsum([1, *sizes])
    return [
        jnp.arange(start, start + size, dtype=dtype).reshape(shape)
        for start, size, shape, dtype in zip(
            starts[:-1], sizes, shapes, [jnp.float32, jnp.int32] * len(shapes), strict=False
        )
    ]


@pytest.mark.parametrize("shapes", TREES.values(), ids=TREES)
@pytest.mark.parametrize(("num_blocks", "packets"), [(4, 1), (5, 7)])
def test_pieces_are_the_packets_of_blocks(
    shapes: list[tuple[int, ...]], num_blocks: int, packets: int
) -> None:
    tree = numbered(shapes)
    blocks, from_blocks = to_blocks(tree, num_blocks, packets)
    pieces, from_pieces = to_pieces(tree, num_blocks, packets)

    packet_of = {
        element: packet
        for block in blocks
        for packet, row in enumerate(np.asarray(block).reshape(num_blocks * packets, -1))
        for element in row
        if element > 0
    }
    for piece in pieces:
        numbers = range(*piece.packets.indices(num_blocks * packets))
        assert len(numbers) == len(piece.rows)
        for number, row in zip(numbers, np.asarray(piece.rows), strict=True):
            assert {packet_of[element] for element in row} == {number}
    assert len(pieces) <= 3 * len(tree)
    for restored in (from_blocks(blocks), from_pieces([piece.rows for piece in pieces])):
        jax.tree.map(np.testing.assert_array_equal, restored, tree)
        assert [leaf.dtype for leaf in restored] == [leaf.dtype for leaf in tree]
