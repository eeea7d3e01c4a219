"""The optax forms: one changed line in a user's chain gives what the averaging rules give."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from jax.sharding import PartitionSpec as P
from mappings import MAPPINGS

import rps_jax as rps
from rps_jax.keys import key_data, wrap_key

N, SIZE, SEED = 6, 17, 4
CHANNEL = rps.Bernoulli(0.4)
PLACES = [
    ("vmap", N),
    ("shard_map", N),
    *(pytest.param(way, N, marks=pytest.mark.long) for way in ("pmap", "vmap_in_shard_map")),
]


def target(worker):
    return jnp.arange(SIZE) + worker.astype(jnp.float32)


def steps(way, make_optimizer, num_steps, params=None, opt_state=None):
    """Takes steps on quadratics whose minimum differs from worker to worker."""

    def one_worker(axis, params, opt_state):
        optimizer = make_optimizer(axis)
        grads = jax.tree.map(lambda x: x - target(jax.lax.axis_index(axis)), params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    stacked = lambda tree: jax.tree.map(lambda x: jnp.stack([x] * N), tree)  # noqa: E731
    if params is None:
        one = {"x": jnp.zeros(SIZE)}
        params, opt_state = stacked((one, make_optimizer("unbound").init(one)))
    step = MAPPINGS[way](one_worker, N)
    for _ in range(num_steps):
        params, opt_state = step(params, opt_state)
    return jax.device_get((params, opt_state))


def models(axis):
    return rps.optax_average_models(optax.adam(0.1), CHANNEL, axis, seed=SEED)


def gradients(axis):
    return optax.chain(
        rps.optax_average_gradients(CHANNEL, axis, seed=SEED, on_miss="zero"), optax.sgd(0.1)
    )


@jax.jit
def deliveries(step):
    key = wrap_key(key_data(SEED))
    draw = lambda _: rps.draw_exchange(CHANNEL, (), key, step, "w")[0]  # noqa: E731
    return jax.vmap(draw, axis_name="w", axis_size=N)(jnp.zeros(N))


@pytest.mark.parametrize(("way", "n"), PLACES)
def test_models_are_averaged_after_the_whole_chain(way, n):
    params, _ = steps(way, models, 3)

    local = optax.adam(0.1)
    expected = {"x": np.zeros((n, SIZE), np.float32)}
    state, update = jax.vmap(local.init)(expected), jax.jit(jax.vmap(local.update))
    for step in range(3):
        grads = {"x": expected["x"] - np.stack([target(jnp.int32(i)) for i in range(n)])}
        updates, state = update(grads, state)
        moved = optax.apply_updates(expected, updates)
        expected = reference.average_models(moved, jax.device_get(deliveries(step)))
    np.testing.assert_allclose(params["x"], expected["x"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("way", "n"), PLACES)
def test_gradients_are_averaged_before_the_chain(way, n):
    params, _ = steps(way, gradients, 3)
    expected = np.zeros((n, SIZE), np.float32)
    for step in range(3):
        grads = expected - np.stack([target(jnp.int32(i)) for i in range(n)])
        delivery = jax.device_get(deliveries(step))
        expected -= np.float32(0.1) * reference.average_gradients(grads, delivery, "zero")
    np.testing.assert_allclose(params["x"], expected, rtol=1e-5, atol=1e-5)


def test_what_is_missed_is_the_worker_s_own_to_the_bit():
    # Steps of a half are exact, however the compiler orders them.
    alone, _ = steps("vmap", lambda axis: optax.sgd(0.5), 4)
    lost, _ = steps(
        "vmap", lambda axis: rps.optax_average_models(optax.sgd(0.5), rps.Bernoulli(1.0), axis), 4
    )
    np.testing.assert_array_equal(alone["x"], lost["x"])


DRAWN = {"seed": SEED, "assignment": "fixed"}


@pytest.mark.parametrize(
    ("algorithm", "make"),
    [
        ("rps", lambda inner: rps.optax_average_models(inner, CHANNEL, "workers", **DRAWN)),
        (
            "gradient-averaging",
            lambda inner: optax.chain(
                rps.optax_average_gradients(CHANNEL, "workers", **DRAWN), inner
            ),
        ),
        (
            rps.rules.AverageModels(local_steps=2, server="stale", on_miss="stale"),
            lambda inner: rps.optax_average_models(
                *(inner, CHANNEL, "workers"),
                **DRAWN | {"local_steps": 2, "server": "stale", "on_miss": "stale"},
            ),
        ),
        pytest.param(
            rps.rules.AverageGradients(on_miss="stale"),
            lambda inner: optax.chain(
                rps.optax_average_gradients(CHANNEL, "workers", **DRAWN, on_miss="stale"), inner
            ),
            marks=pytest.mark.long,
        ),
        *(
            pytest.param(
                rps.rules.DiLoCo(local_steps=4, **options),
                lambda inner, options=options: rps.optax_diloco(
                    inner, CHANNEL, "workers", **DRAWN, local_steps=4, **options
                ),
                marks=marks,
            )
            for options, marks in (
                ({"fragments": 2, "on_miss": "stale"}, []),
                ({}, pytest.mark.long),
                ({"outer": optax.adam(0.5)}, pytest.mark.long),
            )
        ),
    ],
)
def test_the_train_step_suffers_the_same_drops(algorithm, make):
    """The same seed, the same training, whichever form is used."""
    by_optax, _ = steps("vmap", lambda axis: make(optax.sgd(0.1)), 9)

    def loss_fn(params, model_state, batch, key):
        del key
        return 0.5 * jnp.sum((params["x"] - batch) ** 2), model_state

    inner = optax.sgd(0.1)
    step = rps.make_train_step(
        loss_fn, inner, CHANNEL, "workers", algorithm=algorithm, assignment=DRAWN["assignment"]
    )
    one = rps.init_train_state(
        {"x": jnp.zeros(SIZE)}, (), inner, CHANNEL, N, SEED, algorithm=algorithm
    )
    state = jax.tree.map(lambda x: jnp.stack([x] * N), one)
    train_step = jax.jit(jax.vmap(step, axis_name="workers"))
    for _ in range(9):
        state, _ = train_step(state, jnp.stack([target(jnp.int32(i)) for i in range(N)]))
    np.testing.assert_allclose(by_optax["x"], state.params["x"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("make", [models, gradients])
def test_a_checkpoint_of_the_optimizer_state_resumes_the_same_drops(make, tmp_path):
    whole, _ = steps("vmap", make, 5)
    params, opt_state = steps("vmap", make, 2)
    leaves, structure = jax.tree.flatten(opt_state)
    np.savez(tmp_path / "state.npz", *leaves)  # any format that holds arrays will do
    loaded = np.load(tmp_path / "state.npz")
    opt_state = jax.tree.unflatten(structure, [jnp.asarray(loaded[key]) for key in loaded])
    resumed, _ = steps("vmap", make, 3, params, opt_state)
    np.testing.assert_array_equal(whole["x"], resumed["x"])


def test_extra_arguments_reach_the_inner_chain():
    inner = optax.GradientTransformationExtraArgs(
        lambda params: optax.EmptyState(),
        lambda updates, state, params=None, *, scale, **extra: (
            jax.tree.map(lambda u: scale * u, updates),
            state,
        ),
    )
    optimizer = rps.optax_average_models(inner, rps.Reliable(), "w")

    def one_worker(params):
        updates, _ = optimizer.update(params, optimizer.init(params), params, scale=-0.5)
        return optax.apply_updates(params, updates)

    result = jax.jit(jax.vmap(one_worker, axis_name="w"))(jnp.arange(4.0))
    np.testing.assert_allclose(result, np.full(4, 0.75), rtol=1e-6)


def test_params_are_needed_to_average_models():
    optimizer = models("w")
    with pytest.raises(ValueError, match="params=None: expected update"):
        optimizer.update(jnp.zeros(3), optimizer.init(jnp.zeros(3)))


def test_a_channel_with_state_needs_the_number_of_workers():
    class Stateful(rps.Bernoulli):
        def init(self, num_workers):
            return jnp.zeros(num_workers)

    with pytest.raises(ValueError, match="num_workers=None: expected the number of workers, for S"):
        rps.optax_average_gradients(Stateful(0.1), "w").init({})
    state = rps.optax_average_gradients(Stateful(0.1), "w", num_workers=5).init({})
    assert state.channel.shape == (5,)


def test_updates_narrower_than_the_parameters_keep_the_average():
    optimizer = rps.optax_average_models(optax.sgd(0.1), rps.Reliable(), "w")

    def one_worker(params):
        grads = params.astype(jnp.bfloat16)
        updates, _ = optimizer.update(grads, optimizer.init(params), params)
        return optax.apply_updates(params, updates)

    params = jax.random.normal(jax.random.key(0), (8, 100))
    averaged = jax.jit(jax.vmap(one_worker, axis_name="w"))(params)
    assert averaged.dtype == jnp.float32
    assert np.ptp(averaged, axis=0).max() < 1e-6


@pytest.mark.parametrize("make", [rps.optax_average_models, rps.optax_diloco])
def test_the_first_state_can_be_donated(make):
    optimizer = make(optax.sgd(0.1), rps.Bernoulli(0.1), "w")

    def one_worker(params, state):
        updates, state = optimizer.update(params, state, params)
        return optax.apply_updates(params, updates), state

    params = jnp.ones((4, 3))
    state = jax.vmap(optimizer.init)(params)
    jax.jit(jax.vmap(one_worker, axis_name="w"), donate_argnums=(0, 1))(params, state)


def test_keys_are_used_once():
    optimizer = rps.optax_average_models(optax.sgd(0.1), CHANNEL, "w", local_steps=2)

    params = jnp.zeros((4, 3))
    state = jax.vmap(optimizer.init)(params)
    with jax.debug_key_reuse(True):
        jax.jit(jax.vmap(optimizer.update, axis_name="w"))(params, state, params)


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (rps.optax_average_models, {"server": "stale", "on_miss": "stale"}),
        (rps.optax_diloco, {"local_steps": 4, "fragments": 2}),
    ],
)
def test_leaves_that_are_cut_over_a_worker_s_devices_and_whole_ones_stay_so(make, options):
    optimizer = make(optax.adam(0.1), CHANNEL, "workers", **options)
    params = {"cut": jnp.zeros((2, 8)), "whole": jnp.zeros((2, 3))}
    state = jax.vmap(optimizer.init)(params)

    def spec(path, leaf):
        cut = "cut" in jax.tree_util.keystr(path)
        return P("workers", *[None] * (leaf.ndim - 2), "fsdp") if cut else P("workers")

    specs = jax.tree.map_with_path(spec, (params, state))
    axis_types = (jax.sharding.AxisType.Auto,) * 2
    grid = jax.make_mesh((2, 2), ("workers", "fsdp"), axis_types=axis_types)

    @functools.partial(jax.shard_map, mesh=grid, in_specs=specs, out_specs=specs)
    def step(params, state):
        params, state = jax.tree.map(lambda x: x[0], (params, state))
        updates, state = optimizer.update(params, state, params)
        return jax.tree.map(lambda x: x[None], (optax.apply_updates(params, updates), state))

    jax.eval_shape(step, params, state)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((rps.Bernoulli(0.1), optax.sgd(0.1)), r"channel=Gradient.*: expected a channel, with"),
        ((optax.sgd(0.1), 0.1), "channel=0.1: expected a channel, with init and sample"),
        ((optax.sgd, rps.Bernoulli(0.1)), "optimizer=<function.*: expected an optax.Gradient"),
    ],
)
def test_what_is_no_channel_and_no_optimizer_is_refused(arguments, message):
    of_steps = functools.partial(rps.make_train_step, lambda *_: None)
    for make in (rps.optax_average_models, rps.optax_diloco, of_steps):
        with pytest.raises(TypeError, match=message):
            make(*arguments, "w")


@pytest.mark.parametrize("algorithm", ["gradient-averaging", "overlap", "all-reduce", "local"])
def test_rules_that_do_not_fit_around_an_optimizer_are_refused(algorithm):
    with pytest.raises(ValueError, match=f"algorithm='{algorithm}': expected rps, diloco or"):
        rps.optax_average_models(optax.sgd(0.1), CHANNEL, "w", algorithm=algorithm)


@pytest.mark.parametrize("seed", [0.5, jax.random.key(0), jnp.zeros(2, jnp.uint32)])
def test_a_seed_is_an_integer(seed):
    with pytest.raises(ValueError, match=r"seed.*: expected an integer scalar"):
        rps.optax_average_models(optax.sgd(0.1), CHANNEL, "w", seed=seed).init(jnp.zeros(3))


def test_a_state_of_another_number_of_workers_is_refused():
    channel = rps.GilbertElliott(0.1, 2.0)
    optimizer = rps.optax_average_gradients(channel, "w", num_workers=3)
    state = jax.vmap(optimizer.init)(jnp.zeros((4, 2)))
    with pytest.raises(ValueError, match=r"state of GilbertElliott .*init\(num_workers=4\)"):
        jax.vmap(optimizer.update, axis_name="w")(jnp.zeros((4, 2)), state)


def test_an_axis_that_nothing_has_named_is_refused():
    optimizer = rps.optax_average_models(optax.sgd(0.1), CHANNEL, "w")
    params = jnp.zeros((4, 2))
    state = jax.vmap(optimizer.init)(params)
    with pytest.raises(ValueError, match="axis_name='w': 'w' is not bound here; expected"):
        jax.vmap(optimizer.update, axis_name="workers")(params, state, params)


def test_a_state_with_a_leading_axis_is_refused():
    optimizer = rps.optax_average_gradients(CHANNEL, "w")
    state = jax.vmap(optimizer.init)(jnp.zeros((1, 2)))
    message = r"state.key has shape \(1, 2\): expected \(2,\), that of one worker"
    with pytest.raises(ValueError, match=message):
        optimizer.update(jnp.zeros((1, 2)), state)
