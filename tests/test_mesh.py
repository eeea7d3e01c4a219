"""Workers over devices: numbers that fit, values that lie where they should."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import rps_jax as rps


@pytest.mark.parametrize(
    ("num_workers", "workers_per_device", "devices"),
    [(8, None, 8), (16, None, 8), (12, None, 6), (11, None, 1), (1, None, 1), (64, 16, 4)],
)
def test_workers_are_spread_as_thin_as_they_fit(num_workers, workers_per_device, devices):
    mesh = rps.worker_mesh(num_workers, workers_per_device)
    assert mesh.mesh.size == devices
    assert mesh.num_workers == num_workers
    assert mesh.local_workers == range(num_workers)
    index = mesh.spmd(lambda: jax.lax.axis_index(mesh.axis_name), (), P("workers"))()
    np.testing.assert_array_equal(index, np.arange(num_workers))


@pytest.mark.parametrize("workers_per_device", [1, 2, 8])
def test_spmd_maps_a_function_of_one_worker(workers_per_device):
    mesh = rps.worker_mesh(8, workers_per_device)

    def one_worker(mine, ours):
        total = jax.lax.psum(mine["x"] * ours, mesh.axis_name)
        return {"y": mine["x"] + total}, total

    program = mesh.spmd(one_worker, (P("workers"), P()), (P("workers"), P()))
    x = np.arange(8.0, dtype=np.float32)
    mine, total = program(mesh.put({"x": x}), jnp.float32(2))
    assert float(total) == 2 * x.sum()
    np.testing.assert_array_equal(mine["y"], x + 2 * x.sum())
    assert mine["y"].sharding.is_equivalent_to(mesh.sharding(), 1)

    single = mesh.spmd(lambda mine: jax.lax.pmean(mine, mesh.axis_name), (P("workers"),), P())
    assert float(single(mesh.put(x))) == x.mean()


def test_replicate_gives_each_worker_a_copy_on_its_device():
    mesh = rps.worker_mesh(8, 2)
    tree = mesh.replicate({"a": np.arange(3.0), "b": 7})
    assert tree["a"].shape == (8, 3)
    assert tree["b"].shape == (8,)
    assert tree["a"].sharding.is_equivalent_to(mesh.sharding(), 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_workers": 0}, "num_workers=0: expected an integer of at least 1"),
        ({"num_workers": 2.5}, "num_workers=2.5: expected an integer of at least 1"),
        ({"num_workers": 2, "devices": []}, r"devices=\[\]: expected at least one"),
        ({"num_workers": 8, "workers_per_device": 3}, "workers_per_device=3: expected one of 1, 2"),
        (
            {"num_workers": 32, "workers_per_device": 2},
            "workers_per_device=2: expected one of 4, 8",
        ),
        ({"num_workers": 8, "workers_per_device": 0}, "workers_per_device=0: expected one of"),
    ],
)
def test_numbers_that_do_not_fit_raise(arguments, message):
    with pytest.raises(ValueError, match=message):
        rps.worker_mesh(**arguments)


@pytest.fixture
def compilations():
    """Names of the programs that JAX compiles, as they come."""
    names = []

    def listen(event, seconds, **details):
        if event == "/jax/core/compile/backend_compile_duration":
            names.append(details.get("fun_name"))

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield names
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.parametrize("workers_per_device", [1, 2])
def test_a_loop_compiles_once(workers_per_device, compilations):
    """At first the arguments lie anywhere; then they are what the program has returned."""
    mesh = rps.worker_mesh(4, workers_per_device)

    def step(params, batch, rate):
        moved = jax.tree.map(lambda x: x - rate * batch, params)
        return moved, jax.lax.psum(batch.sum(), mesh.axis_name)

    program = mesh.spmd(step, (P("workers"), P("workers"), P()), (P("workers"), P()))
    params, batch = {"w": jnp.zeros((4, 3))}, np.ones((4, 3), np.float32)
    for _ in range(3):
        params, _ = program(params, batch, 0.1)
    assert len([name for name in compilations if name and "program" in name]) == 1
    np.testing.assert_allclose(params["w"], -0.3 * batch, rtol=1e-6)


def test_copies_of_trees_of_a_kind_compile_once(compilations):
    for value in range(3):
        copies = rps.worker_mesh(4).replicate({"w": np.full(5, value)})
        np.testing.assert_array_equal(copies["w"], np.full((4, 5), value))
    assert len([name for name in compilations if name and "broadcast" in name]) == 1


def test_a_spec_of_another_axis_is_refused():
    mesh = rps.worker_mesh(4)
    with pytest.raises(ValueError, match=r"in_specs has .*'model'.*: expected P\("):
        mesh.spmd(lambda x: x, (P("model"),), P("workers"))


def test_an_argument_without_a_spec_is_refused():
    program = rps.worker_mesh(4).spmd(lambda x: x, (P("workers"),), P("workers"))
    with pytest.raises(TypeError, match="2 arguments: expected 1, as in_specs has"):
        program(np.zeros(4), np.zeros(4))


@pytest.mark.parametrize("workers_per_device", [1, 2])
def test_a_result_without_a_spec_is_refused(workers_per_device):
    mesh = rps.worker_mesh(4, workers_per_device)
    program = mesh.spmd(lambda x: (x, x, x), (P("workers"),), (P("workers"), P("workers")))
    with pytest.raises(ValueError, match="3 results: expected 2, as out_specs has"):
        program(np.zeros(4))


@pytest.mark.parametrize("workers_per_device", [1, 2])
@pytest.mark.parametrize("rows", [4, 5, 16])
def test_arrays_have_a_row_for_each_worker(workers_per_device, rows):
    mesh = rps.worker_mesh(8, workers_per_device)
    program = mesh.spmd(lambda state, x: (x, state), (P(), P("workers")), (P("workers"), P()))
    message = rf"argument 1\['x'\] has shape \({rows}, 3\): expected \(8, ...\), a row for each"
    with pytest.raises(ValueError, match=message):
        program(0, {"x": np.zeros((rows, 3))})
