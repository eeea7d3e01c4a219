"""The laws of the averaging rules, on every way of running them."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from mappings import MAPPINGS, awkward_params, every_place, mesh

import rps_jax as rps
from rps_jax.averaging import sent_or_last

KEY = jax.random.key(7)
NO_PACKETS = rps.Delivery(*[jnp.ones((4, 0), bool)] * 3)
RULES = {
    "models": reference.average_models,
    "own": lambda grads, delivery: reference.average_gradients(grads, delivery, "own"),
    "zero": lambda grads, delivery: reference.average_gradients(grads, delivery, "zero"),
}


@functools.cache
def program(way, num_workers, packets=None):
    """All rules on one exchange, compiled once: the drop rate and the step are traced."""

    def one_worker(axis, params, drop_rate, step):
        channel = rps.Bernoulli(drop_rate, packets=packets)
        delivery, _ = rps.draw_exchange(channel, (), KEY, step, axis)
        results = {
            "models": rps.average_models(params, delivery, axis),
            "own": rps.average_gradients(params, delivery, axis, "own"),
            "zero": rps.average_gradients(params, delivery, axis, "zero"),
            "all_reduce": rps.all_reduce(params, axis),
        }
        return results, delivery

    return MAPPINGS[way](one_worker, num_workers)


def run(way, num_workers, params, drop_rate, step=0, packets=None):
    """Returns the result of each rule, and all workers' deliveries."""
    params = jax.tree.map(jnp.asarray, params)
    rates = jnp.full(num_workers, drop_rate, jnp.float32)
    steps = jnp.full(num_workers, step, jnp.int32)
    results, delivery = jax.device_get(program(way, num_workers, packets)(params, rates, steps))
    assert (delivery.shift == delivery.shift[0]).all()
    return results, delivery


def assert_close(result, expected):
    """Equal up to the order of summation: a few roundings of the leaf's own dtype."""

    def close(a, b):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        if np.issubdtype(a.dtype, np.integer):
            np.testing.assert_array_equal(a, b)
            return
        tolerance = 8 * float(jnp.finfo(a.dtype).eps)
        np.testing.assert_allclose(
            a.astype(np.complex128), b.astype(np.complex128), rtol=tolerance, atol=tolerance
        )

    jax.tree.map(close, result, expected)


def assert_identical(result, expected):
    jax.tree.map(np.testing.assert_array_equal, result, expected)


@pytest.mark.parametrize(("way", "n"), every_place())
def test_equals_the_reference_for_the_same_delivery(way, n):
    params = awkward_params(n)
    for step in range(3):
        results, delivery = run(way, n, params, 0.4, step)
        for rule, twin in RULES.items():
            assert_close(results[rule], twin(params, delivery))


@pytest.mark.parametrize(("way", "n"), every_place())
def test_without_drops_it_is_the_mean(way, n):
    params = awkward_params(n)
    results, _ = run(way, n, params, 0.0)
    expected = reference.all_reduce(params)
    for result in results.values():
        assert_close(result, expected)


@pytest.mark.parametrize(("way", "n"), every_place())
def test_when_all_is_dropped_every_worker_keeps_its_own(way, n):
    params = awkward_params(n)
    results, delivery = run(way, n, params, 1.0)
    assert (delivery.sent == np.eye(n, dtype=bool)).all()
    assert_identical(results["models"], params)
    assert_identical(results["own"], params)
    # A worker hears itself: of the blocks, it has the one that it serves; the others are zero.
    assert_identical(results["zero"], RULES["zero"](params, delivery))


@pytest.mark.parametrize(("way", "n"), every_place())
@pytest.mark.parametrize("drop_rate", [0.0, 0.3, 0.9])
def test_equal_models_stay_equal(way, n, drop_rate):
    params = jax.tree.map(lambda x: np.repeat(x, n, axis=0), awkward_params(1))
    assert_close(run(way, n, params, drop_rate)[0]["models"], params)


@pytest.mark.parametrize(("way", "n"), every_place(at_least=2))
@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_dropped_poison_reaches_no_one(way, n, poison):
    params = awkward_params(n)
    params["matrix"][1] = poison
    results, delivery = run(way, n, params, 0.7)
    # The twin averages what arrived and nothing else.
    assert_close(results["models"], reference.average_models(params, delivery))
    spared = np.isfinite(results["models"]["matrix"][np.arange(n) != 1])
    assert spared.mean() > 0.1


@pytest.mark.parametrize(
    ("way", "n", "packets"),
    [
        ("vmap", 5, 3),
        ("shard_map", 3, 3),
        *(
            pytest.param(*place, marks=pytest.mark.long)
            for place in [("vmap", 5, 1), ("vmap_in_shard_map", 6, 3)]
        ),
    ],
)
def test_packets_are_dropped_one_by_one(way, n, packets):
    params = awkward_params(n)
    results, delivery = run(way, n, params, 0.4, packets=packets)
    assert delivery.sent.shape == (n, n, packets)
    assert_close(results["models"], reference.average_models(params, delivery))


def test_every_dtype_that_has_an_average():
    n = 5
    values = np.random.default_rng(0).uniform(0, 90, size=(n, 13))
    dtypes = ("float16", "bfloat16", "float8_e4m3fn", "complex64", "int8", "uint8", "uint32")
    params = {dtype: np.asarray(jnp.asarray(values, dtype)) for dtype in dtypes}
    params["float32"] = values[:, :4].astype(np.float32)
    results, delivery = run("vmap", n, params, 0.3)
    assert_close(results["models"], reference.average_models(params, delivery))
    assert_close(results["all_reduce"], reference.all_reduce(params))


@pytest.mark.long
def test_large_integers_do_not_overflow():
    n = 33
    params = {}
    for dtype in ("int8", "uint8", "int32", "uint32"):
        params[dtype] = np.full((n, 80), np.iinfo(dtype).min, dtype)
        params[dtype][:, 40:] = np.iinfo(dtype).max
        params[dtype][0, 40:] -= 5
    results, delivery = run("vmap", n, params, 0.3)
    assert_identical(results["models"], reference.average_models(params, delivery))
    assert_identical(results["all_reduce"], reference.all_reduce(params))


@pytest.mark.parametrize("shift", [np.uint8(3), np.int8(3), -2])
def test_a_shift_may_be_any_integer(shift):
    n = 5
    params = np.random.default_rng(0).normal(size=(n, 10)).astype(np.float32)
    sent = np.random.default_rng(1).random((n, n)) < 0.5
    delivery = rps.Delivery(sent, sent.T, sent.T)
    for average, twin in (
        (rps.average_models, reference.average_models),
        (rps.average_gradients, reference.average_gradients),
    ):
        mapped = MAPPINGS["vmap"](lambda axis, p, d, of=average: of(p, d, axis, shift=shift), n)
        expected = twin(params, delivery, shift=int(shift))
        assert_close(np.asarray(mapped(params, delivery)), expected)


def test_a_worker_hears_itself_whatever_the_delivery_says():
    n = 4
    nothing = np.zeros((n, n), bool)
    delivery = rps.Delivery(nothing, nothing, ~nothing)
    params = np.arange(n * n, dtype=np.float32).reshape(n, n)
    average = lambda axis, p, d: rps.average_models(p, d, axis)  # noqa: E731
    result = MAPPINGS["vmap"](average, n)(params, delivery)
    # Every server has its own block alone to average, and everyone receives that.
    assert_identical(np.asarray(result), np.tile(np.diag(params), (n, 1)))


@pytest.mark.parametrize(
    "empty",
    [
        {},
        *(pytest.param(each, marks=pytest.mark.long) for each in ((), None)),
        {"a": np.zeros((2, 0), np.float32)},
    ],
)
def test_empty_trees_pass(empty):
    assert_identical(run("vmap", 2, empty, 0.5)[0]["models"], empty)


@pytest.mark.parametrize("local_steps", [1, 2])
def test_leaves_without_elements_stay_each_worker_s_own(local_steps):
    params = awkward_params(4)

    def steps(axis, params):
        rule = {"local_steps": local_steps}
        optimizer = rps.optax_average_models(optax.identity(), rps.Bernoulli(0.3), axis, **rule)

        def step(state, _):
            delivery, _ = rps.draw_exchange(rps.Bernoulli(0.3), (), KEY, 0, axis)
            params = rps.average_models(state[0], delivery, axis)
            return (params, optimizer.update(params, state[1], params)[1]), None

        return jax.lax.scan(step, (params, optimizer.init(params)), length=2)[0][0]

    # jax 0.11.2 cannot compile any such scan.
    result = jax.eval_shape(MAPPINGS["shard_map"](steps, 4), params)
    assert jax.tree.map(jnp.shape, result) == jax.tree.map(jnp.shape, params)


def test_shift_says_who_serves_which_block():
    n = 4
    everything = np.ones((n, n), bool)
    nothing_from_2 = everything.copy()
    nothing_from_2[:, 2] = np.arange(n) == 2
    delivery = rps.Delivery(everything, everything, nothing_from_2)
    params = np.arange(n * n, dtype=np.float32).reshape(n, n)
    for shift in range(n):
        average = lambda axis, p, d, s: rps.average_models(p, d, axis, s)  # noqa: E731
        result = MAPPINGS["vmap"](average, n)(params, delivery, np.full(n, shift))
        missed_block = (2 - shift) % n
        for worker in range(n):
            expected = params.mean(0)
            if worker != 2:
                expected[missed_block] = params[worker, missed_block]
            np.testing.assert_allclose(result[worker], expected, rtol=1e-6)


@pytest.mark.parametrize("shift", [0, 3, "random"])
def test_lowers_to_one_reduce_scatter_and_one_all_gather(shift):
    n, size = 8, 80_000

    def one_worker(params, delivery, shift):
        params, delivery = jax.tree.map(lambda x: x[0], (params, delivery))
        return jax.tree.map(
            lambda x: x[None], rps.average_models(params, delivery, "workers", shift)
        )

    spec = jax.sharding.PartitionSpec("workers")
    mapped = jax.shard_map(
        one_worker,
        mesh=mesh(n),
        in_specs=(spec, spec, jax.sharding.PartitionSpec()),
        out_specs=spec,
    )
    params = {"a": jnp.zeros((n, size)), "b": jnp.zeros((n, 7))}
    delivery = rps.Delivery(*[jnp.ones((n, n), bool)] * 3)
    if shift == "random":
        lowered = jax.jit(mapped).lower(params, delivery, jnp.int32(0))
    else:
        lowered = jax.jit(lambda p, d: mapped(p, d, shift)).lower(params, delivery)
    compiled = lowered.compile()
    text = compiled.as_text()
    assert text.count(" reduce-scatter(") + text.count(" reduce-scatter-start(") == 1
    assert text.count(" all-gather(") + text.count(" all-gather-start(") == 1
    # The counts of what arrives are one small all-reduce.
    assert re.findall(r"(\S+) all-reduce\(", text) == ["s32[8,1]{1,0}"]
    assert "all-to-all(" not in text
    # Beside the model before and after, its messages and the averages: two more copies at the most.
    assert compiled.memory_analysis().temp_size_in_bytes < 2.1 * 4 * size


def test_virtual_workers_on_devices_lower_to_one_of_each_too():
    devices, local = 4, 2

    def on_device(params, delivery):
        average = jax.vmap(
            lambda p, d: rps.average_models(p, d, ("workers", "local")), axis_name="local"
        )
        return average(params, delivery)

    spec = jax.sharding.PartitionSpec("workers")
    mapped = jax.shard_map(
        on_device, mesh=mesh(devices), in_specs=spec, out_specs=spec, check_vma=False
    )
    n = devices * local
    delivery = rps.Delivery(*[jnp.ones((n, n), bool)] * 3)
    text = jax.jit(mapped).lower(jnp.zeros((n, 64)), delivery).compile().as_text()
    assert text.count(" reduce-scatter(") == 1
    assert text.count(" all-gather(") == 1


@pytest.mark.parametrize(
    ("way", "n"),
    [("vmap", 5), ("shard_map", 5), ("vmap_in_shard_map", 2), ("vmap_in_shard_map", 6)],
)
def test_an_average_is_differentiated_as_the_linear_function_that_it_is(way, n):
    params, moved, of_result = jax.random.normal(KEY, (3, n, 40))
    deliveries = run(way, n, awkward_params(n), 0.4)[1]
    averaged = MAPPINGS[way](lambda axis, p, d: rps.average_models(p, d, axis), n)

    def average(params):
        return averaged(params, deliveries)

    result, differential = jax.jvp(average, (params,), (moved,))
    assert_close(jax.device_get(result), reference.average_models(params, deliveries))
    assert_close(jax.device_get(differential), reference.average_models(moved, deliveries))
    (pulled_back,) = jax.vjp(average, params)[1](of_result)
    np.testing.assert_allclose(
        jnp.sum(pulled_back * moved), jnp.sum(of_result * differential), 1e-4
    )


@pytest.mark.parametrize("check_vma", [True, False])
def test_workers_over_several_devices_exchange_shards(check_vma):
    """Each worker is two devices; one leaf is cut over them, the other is replicated.

    Where JAX checks what varies, they are exchanged apart.
    """
    workers, shards = 4, 2
    grid = jax.make_mesh(
        (workers, shards), ("workers", "fsdp"), axis_types=(jax.sharding.AxisType.Auto,) * 2
    )
    specs = {"cut": P("workers", "fsdp"), "whole": P("workers")}
    rng = np.random.default_rng(0)
    shapes = {"cut": (10, 3), "whole": (7,)}
    params = {
        name: rng.normal(size=(workers, *shape)).astype(np.float32)
        for name, shape in shapes.items()
    }
    placed = {
        name: jax.device_put(leaf, jax.NamedSharding(grid, specs[name]))
        for name, leaf in params.items()
    }

    @jax.jit
    @functools.partial(
        jax.shard_map,
        mesh=grid,
        in_specs=(specs, P()),
        out_specs=(specs, specs, P("workers")),
        check_vma=check_vma,
    )
    def average(params, drop_rate):
        mine = jax.tree.map(lambda x: x[0], params)
        delivery, _ = rps.draw_exchange(rps.Bernoulli(drop_rate), (), KEY, 0, "workers")
        averaged = rps.average_models(mine, delivery, "workers")
        nothing, me = jax.tree.map(jnp.zeros_like, mine), jax.lax.axis_index("workers")
        heard = sent_or_last(mine, nothing, delivery, me)
        return jax.tree.map(lambda x: x[None], (averaged, heard, delivery))

    apart = [["cut"], ["whole"]] if check_vma else [["cut", "whole"]]
    text = average.lower(placed, 0.3).compile().as_text()
    assert len(re.findall(r" reduce-scatter(?:-start)?\(", text)) == len(apart)
    assert len(re.findall(r" all-gather(?:-start)?\(", text)) == len(apart)
    assert re.findall(r"(\S+) all-reduce\(", text) == ["s32[4,1]{1,0}"]

    unsharded, *_ = average(placed, 0.0)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, np.broadcast_to(b.mean(0), b.shape), rtol=1e-5),
        unsharded, params,
    )  # fmt: skip
    averaged, heard, delivery = average(placed, 0.3)
    assert not np.asarray(delivery.sent).all()
    for name, leaf in averaged.items():
        assert leaf.sharding.is_equivalent_to(placed[name].sharding, leaf.ndim)
    for replica in range(workers):
        copies = [
            s.data for s in averaged["whole"].addressable_shards if s.index[0].start == replica
        ]
        assert len(copies) == shards
        np.testing.assert_array_equal(*copies)
    for shard in range(shards):
        rows = slice(5 * shard, 5 * shard + 5)
        local = {"cut": params["cut"][:, rows], "whole": params["whole"]}
        expected, of_servers = {}, {}
        for names in apart:
            together = {name: local[name] for name in names}
            nothing = jax.tree.map(np.zeros_like, together)
            expected |= reference.average_models(together, jax.device_get(delivery))
            of_servers |= reference.sent_or_last(together, nothing, jax.device_get(delivery))
        for found, twin in ((averaged, expected), (heard, of_servers)):
            of_shard = {"cut": found["cut"][:, rows], "whole": found["whole"]}
            assert_close(jax.device_get(of_shard), twin)


def test_output_sharding_is_the_input_sharding():
    """Parameters sharded over a second axis of the mesh stay so."""
    workers, shards = 4, 2
    grid = jax.make_mesh(
        (workers, shards), ("workers", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2
    )
    spec = jax.sharding.PartitionSpec("workers", "model")
    params = np.random.default_rng(0).normal(size=(workers, 6)).astype(np.float32)
    placed = jax.device_put(params, jax.sharding.NamedSharding(grid, spec))

    def one_worker(params):
        delivery, _ = rps.draw_exchange(rps.Reliable(), (), KEY, 0, "workers")
        return rps.average_models(params[0], delivery, "workers")[None]

    mapped = jax.shard_map(one_worker, mesh=grid, in_specs=spec, out_specs=spec)
    result = jax.jit(mapped)(placed)
    assert result.sharding.is_equivalent_to(placed.sharding, 2)
    np.testing.assert_allclose(
        result, np.broadcast_to(params.mean(0), params.shape), rtol=1e-6, atol=1e-6
    )


def test_a_leaf_over_an_explicit_axis_is_refused():
    axis_types = (jax.sharding.AxisType.Explicit,) * 2
    grid = jax.make_mesh((2, 2), ("workers", "tp"), axis_types=axis_types)
    params = {"w": jax.device_put(jnp.zeros((2, 4)), NamedSharding(grid, P("workers", "tp")))}
    everything = rps.Delivery(*[jnp.ones(2, bool)] * 3)
    average = jax.shard_map(
        lambda p: rps.average_models(p, everything, "workers"),
        mesh=grid,
        in_specs=P("workers"),
        out_specs=P("workers"),
        axis_names={"workers"},
    )
    with pytest.raises(ValueError, match=r"leaf \['w'\] has type .*, over an explicit axis: "):
        jax.jit(average)(params)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda p, d: rps.average_models(p, d, "nodes"),
            ValueError,
            "axis_name='nodes': 'nodes' is not bound here",
        ),
        (
            lambda p, d: rps.all_reduce(p, ("workers", "nodes")),
            ValueError,
            "'nodes' is not bound here",
        ),
        (
            lambda p, d: rps.average_models(p, d._replace(sent=d.sent[:2]), "workers"),
            ValueError,
            r"delivery.sent has shape \(2,\): expected \(4,\) or \(4, packets\)",
        ),
        (
            lambda p, _: rps.average_models(p, NO_PACKETS, "workers"),
            ValueError,
            r"delivery.sent has shape \(4, 0\): expected at least 1",
        ),
        (
            lambda p, d: rps.average_models(p, d._replace(gathered=d.sent[:, None]), "workers"),
            ValueError,
            r"delivery.gathered has shape \(4, 1\): expected \(4,\), that of delivery.sent",
        ),
        (
            lambda p, d: rps.average_models(p, d._replace(received=d.sent * 1.0), "workers"),
            ValueError,
            "delivery.received has dtype float32: expected bool",
        ),
        (
            lambda p, d: rps.average_models(p, d, ["workers"]),
            ValueError,
            r"axis_name=\['workers'\]: expected a name, or a tuple of names",
        ),
        (
            lambda p, d: rps.average_models(p, d, "workers", shift=0.5),
            ValueError,
            "shift=0.5: expected an integer scalar",
        ),
        (
            lambda p, d: rps.average_models(p, d._replace(shift=jnp.ones(4)), "workers"),
            ValueError,
            r"delivery.shift has shape \(4,\) and dtype float32: expected an integer scalar",
        ),
        (
            lambda p, d: rps.average_models(p, rps.Bernoulli(0.1), "workers"),
            TypeError,
            r"delivery=Bernoulli\(.*\): expected an rps_jax.Delivery",
        ),
        (
            lambda p, d: rps.average_gradients(p, d, "workers", on_miss="skip"),
            ValueError,
            "on_miss='skip': expected one of own, zero",
        ),
        (
            lambda p, d: rps.average_models({"mask": p > 0}, d, "workers"),
            TypeError,
            r"leaf \['mask'\] has dtype bool: expected a floating",
        ),
        (
            lambda p, _: rps.consensus_distance({"mask": p > 0}, "workers"),
            TypeError,
            r"leaf \['mask'\] has dtype bool: expected a floating",
        ),
    ],
)
def test_bad_arguments_raise_at_trace_time(call, error, message):
    n = 4
    delivery = rps.Delivery(*[jnp.ones((n, n), bool)] * 3)
    with pytest.raises(error, match=message):
        jax.vmap(call, axis_name="workers")(jnp.zeros((n, 3)), delivery)


def test_strict_promotion_in_64_bits():
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        delivery = rps.Delivery(*[jnp.ones((4, 4), bool)] * 3)
        average = functools.partial(rps.average_models, axis_name="workers")
        params = {"wide": jnp.arange(4.0), "narrow": jnp.arange(4, dtype=jnp.float32)}
        averaged = jax.jit(jax.vmap(average, axis_name="workers"))(params, delivery)
        np.testing.assert_array_equal(averaged["wide"], np.full(4, 1.5))
        of_worker = rps.Delivery(*[np.ones(4, bool)] * 3)
        counts = jax.jit(rps.LinkCounts.add)(rps.LinkCounts.zero(4), of_worker)
        assert counts.delivered.sum() == 8
