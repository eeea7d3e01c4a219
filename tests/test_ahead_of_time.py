"""The exchange compiled for devices that are not here; needs the extra `aot`."""

import importlib.util
import re
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import rps_jax as rps

ELEMENTS = 10_000
"""Of a block."""


def compiled_exchange(topology: topologies.TopologyDescription) -> jax.stages.Compiled:
    n = len(topology.devices)
    mesh = Mesh(np.array(topology.devices), ("workers",), axis_types=(AxisType.Auto,))

    def exchange(params: jax.Array, step: jax.Array) -> jax.Array:
        key, channel = jax.random.key(0), rps.Bernoulli(0.1)
        delivery, _ = rps.draw_exchange(channel, (), key, step, "workers")
        averaged: jax.Array = rps.average_models(params[0], delivery, "workers")[None]
        return averaged

    program = jax.jit(
        jax.shard_map(exchange, mesh=mesh, in_specs=(P("workers"), P()), out_specs=P("workers"))
    )
    sharding = NamedSharding(mesh, P("workers"))
    params = jax.ShapeDtypeStruct((n, n * ELEMENTS), jnp.float32, sharding=sharding)
    compiled = program.lower(params, jax.ShapeDtypeStruct((), jnp.int32)).compile()
    # Nowhere near n copies of the model.
    memory = compiled.memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < 6 * 4 * n * ELEMENTS
    return compiled


def collectives(compiled: jax.stages.Compiled) -> Counter[str]:
    return Counter(
        re.findall(
            r" (reduce-scatter|all-reduce|all-gather|all-to-all)(?:-start)?\(",
            compiled.as_text() or "",
        )
    )


@pytest.mark.parametrize(("name", "chips"), [("v5e:4x4", 16), ("v5e:16x16", 256)])
def test_tpus_make_an_all_reduce_of_the_reduce_scatter(
    name: str, chips: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed")
    # Ask no cloud what machine this is, and mind no other process that compiles.
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    topology = topologies.get_topology_desc(name, platform="tpu")
    assert len(topology.devices) == chips
    # One of them is the counts.
    expected = {"all-reduce": 2, "all-gather": 1}
    assert collectives(compiled_exchange(topology)) == expected


def test_gpus_have_one_reduce_scatter_and_one_all_gather() -> None:
    if importlib.util.find_spec("jax_cuda12_plugin") is None:
        pytest.skip("jax-cuda12-plugin is not installed")
    topology = topologies.get_topology_desc(
        "",
        platform="cuda",
        target_config=(Path(__file__).parent / "h100.txtpb").read_text(),
        topology="1x1x8",
    )
    assert len(topology.devices) == 8
    expected = {"reduce-scatter": 1, "all-reduce": 1, "all-gather": 1}
    assert collectives(compiled_exchange(topology)) == expected
