"""The ways of running a function of one worker over all workers, for the laws to be held to."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

WORKERS = "workers"


def vmap(function: Callable[..., Any], num_workers: int) -> Callable[..., Any]:
    return jax.jit(
        jax.vmap(lambda *args: function(WORKERS, *args), axis_name=WORKERS, axis_size=num_workers)
    )


def shard_map(function: Callable[..., Any], num_workers: int) -> Callable[..., Any]:
    def on_device(*args: Any) -> Any:
        result = function(WORKERS, *jax.tree.map(lambda x: x[0], args))
        return jax.tree.map(lambda x: x[None], result)

    spec = PartitionSpec(WORKERS)
    return jax.jit(jax.shard_map(on_device, mesh=mesh(num_workers), in_specs=spec, out_specs=spec))


def pmap(function: Callable[..., Any], num_workers: int) -> Callable[..., Any]:
    devices = jax.devices()[:num_workers]
    return jax.pmap(lambda *args: function(WORKERS, *args), WORKERS, devices=devices)


def vmap_in_shard_map(function: Callable[..., Any], num_workers: int) -> Callable[..., Any]:
    devices = max(d for d in (1, 2, 4) if num_workers % d == 0)
    on_device = jax.vmap(
        lambda *args: function((WORKERS, "local"), *args),
        axis_name="local",
        axis_size=num_workers // devices,
    )
    spec = PartitionSpec(WORKERS)
    return jax.jit(
        jax.shard_map(on_device, mesh=mesh(devices), in_specs=spec, out_specs=spec, check_vma=False)
    )


def mesh(num_devices: int) -> jax.sharding.Mesh:
    return jax.make_mesh(
        (num_devices,),
        (WORKERS,),
        axis_types=(jax.sharding.AxisType.Auto,),
        devices=jax.devices()[:num_devices],
    )


MAPPINGS = {
    "vmap": vmap,
    "shard_map": shard_map,
    "pmap": pmap,
    "vmap_in_shard_map": vmap_in_shard_map,
}

# An awkward number of workers under every mapping, and one alone; others in the long run.
_USUAL = [("vmap", 1), ("vmap", 5), ("shard_map", 5), ("pmap", 3), ("vmap_in_shard_map", 6)]
_MORE = {
    "vmap": (2, 33),
    "shard_map": (1, 2, 8),
    "pmap": (1, 8),
    "vmap_in_shard_map": (2, 12, 33),
}
_ALL = {
    "vmap": (*range(1, 9), 12, 16, 17, 31, 32, 33),
    "shard_map": range(1, 9),
    "pmap": range(1, 9),
    "vmap_in_shard_map": (1, 2, 4, 7, 12, 16, 20, 32, 33),
}


def every_place(at_least: int = 1) -> list[Any]:
    """Returns the mappings and numbers of workers that an average is held to, `(way, n)`."""
    return _places(_ALL, at_least)


def places() -> list[Any]:
    """Returns those that everything else is held to."""
    return _places(_MORE)


def _places(more: dict[str, Any], at_least: int = 1) -> list[Any]:
    usual = [place for place in _USUAL if place[1] >= at_least]
    rest = [(way, n) for way in more for n in more[way] if n >= at_least and (way, n) not in usual]
    return [*usual, *(pytest.param(*place, marks=pytest.mark.long) for place in rest)]


def awkward_params(num_workers: int, seed: int = 0) -> dict[str, Any]:
    """Fewer parameters than workers in some dtypes, a scalar, an empty leaf, mixed dtypes."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=(num_workers, *shape)).astype(np.float32)

    return {
        "matrix": normal(5, 7),
        "scalar": normal(),
        "empty": normal(0, 3),
        "nested": (normal(1), {"half": normal(11).astype(jax.numpy.bfloat16)}),
        "counts": rng.integers(-9, 9, size=(num_workers, 3)).astype(np.int32),
    }
