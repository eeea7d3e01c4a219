"""A pytree as blocks `[num_blocks, packets, elements]` and back, exactly."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp


def to_blocks(
    tree: Any, num_blocks: int, packets: int = 1
) -> tuple[list[jax.Array], Callable[[Sequence[jax.Array]], Any]]:
    """Cuts a pytree into `num_blocks` equal blocks of `packets` equal packets.

    The leaves of each dtype are laid end to end, in the order of the tree, padded with zeros, and
    cut; so block j holds a contiguous share of every dtype.

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
    leaves, treedef = jax.tree.flatten(tree)
    leaves = [jnp.asarray(leaf) for leaf in leaves]
    groups: dict[Any, list[int]] = {}
    for index, leaf in enumerate(leaves):
        if leaf.size:
            groups.setdefault(leaf.dtype, []).append(index)

    def cut(group: list[int]) -> jax.Array:
        flat = jnp.concatenate([leaves[index].ravel() for index in group])
        padding = -flat.size % (num_blocks * packets)
        return jnp.pad(flat, (0, padding)).reshape(num_blocks, packets, -1)

    def from_blocks(blocks: Sequence[jax.Array]) -> Any:
        restored = list(leaves)
        for group, block in zip(groups.values(), blocks, strict=True):
            flat, start = block.ravel(), 0
            for index in group:
                like = leaves[index]
                restored[index] = flat[start : start + like.size].reshape(like.shape)
                start += like.size
        return jax.tree.unflatten(treedef, restored)

    return [cut(group) for group in groups.values()], from_blocks
