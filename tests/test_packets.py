"""What packets hold, and which datagrams are refused."""

import hmac
import itertools
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from datagrams import KEY, N, hostile, params_of, sealed

import rps_jax as rps
from rps_jax.transport.layout import Layout, layout_of
from rps_jax.transport.packets import Sealer


@pytest.mark.parametrize("count", [20_000, pytest.param(1_000_000, marks=pytest.mark.long)])
def test_hostile_datagrams_are_counted_and_never_accepted(count):
    sealer, rng = Sealer(7, KEY), np.random.default_rng(0)
    datagrams, kinds = hostile(rng, sealer, count), Counter()
    while some := sorted(itertools.islice(datagrams, 2000), key=len):
        for size, group in itertools.groupby(some, key=len):
            alike = list(group)
            rows = np.frombuffer(b"".join(alike), np.uint8).reshape(len(alike), size)
            genuine, refused = sealer.open(rows)
            assert not genuine
            kinds.update(refused)
    assert sum(kinds.values()) == count
    assert kinds.keys() == {"foreign", "truncated", "forged"}


@pytest.mark.parametrize("key", [b"k" * 16, b"k" * 64])
def test_a_tag_is_half_an_hmac(key):
    for datagram in sealed(Sealer(7, key)):
        content, tag = datagram[:-16].tobytes(), datagram[-16:].tobytes()
        assert tag == hmac.digest(key, content, "sha256")[:16]


@pytest.mark.parametrize("most_bytes", [100, 1400, 60_000])
@pytest.mark.parametrize("num_workers", [1, 2, 5, 33])
def test_packets_hold_every_leaf_and_give_it_back(num_workers, most_bytes):
    tree = params_of(0)
    layout = layout_of(tree, num_workers, most_bytes)
    assert 0 < layout.length <= most_bytes
    blocks, from_blocks = rps.blocks.to_blocks(tree, num_workers, layout.packets)
    rows = layout.rows([np.asarray(block) for block in blocks], num_workers)
    assert rows.shape == (num_workers, layout.packets, layout.length)
    restored = from_blocks([jnp.asarray(block) for block in layout.blocks(rows)])
    jax.tree.map(np.testing.assert_array_equal, restored, tree)


@pytest.mark.parametrize("dtype", [np.int8, np.uint16, np.int32, np.int64, np.uint64])
def test_integers_of_any_size_are_averaged_without_overflow(dtype):
    bounds = np.iinfo(dtype)
    values = np.random.default_rng(0).integers(bounds.min, bounds.max, (5, 4, 3), dtype, True)
    values[:, 0] = bounds.max
    values[:, 1] = bounds.min
    rows = values.view(np.uint8).reshape(5, 4, -1)
    layout = Layout(4, ((np.dtype(dtype), 3),))
    (found,) = layout.blocks(layout.average(rows.copy(), np.ones((5, 4), bool)))
    # To the nearest, and a half up.
    expected = (2 * values.astype(object).sum(0) + 5) // 10
    np.testing.assert_array_equal(found.astype(object), expected)


def test_a_leaf_without_an_average_is_refused():
    for dtype in ("bool", "int4"):
        with pytest.raises(
            TypeError, match=rf"leaf \['x'\] has dtype {dtype}: expected a floating"
        ):
            layout_of({"x": jnp.ones(3, dtype)}, N, 1400)
