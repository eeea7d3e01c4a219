"""The step of one worker: every algorithm against its definition, and its state."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from jax.sharding import PartitionSpec as P

import rps_jax as rps
from rps_jax.draw import rule_key
from rps_jax.keys import key_data, wrap_key
from rps_jax.rounding import with_dither, without_dither
from rps_jax.rules import RULES
from rps_jax.servers import Server

N, SIZE, RATE = 8, 20, 0.1
CHANNEL = rps.Bernoulli(0.3)
LEARNING_RATE = np.float32(RATE)
START = np.tile(np.arange(SIZE, dtype=np.float32), (N, 1))


def loss_fn(params, model_state, batch, key):
    """A quadratic whose gradient is `params - batch`; its state counts calls and keeps a mean."""
    del key
    loss = 0.5 * jnp.sum((params["x"] - batch) ** 2)
    mean = 0.9 * model_state["mean"] + 0.1 * batch.mean()
    return loss, {"mean": mean, "calls": model_state["calls"] + 1}


def params():
    return {"x": jnp.asarray(START[0])}


def batches(step):
    return np.random.default_rng(step).normal(size=(N, SIZE)).astype(np.float32)


def start(optimizer, channel=CHANNEL, seed=0, **rule):
    model_state = {"mean": jnp.float32(0), "calls": jnp.int32(0)}
    return rps.init_train_state(params(), model_state, optimizer, channel, N, seed, **rule)


def run(num_steps, workers_per_device=1, optimizer=None, channel=CHANNEL, state=None, **options):
    optimizer = optimizer or optax.sgd(RATE)
    mesh = rps.worker_mesh(N, workers_per_device)
    step = mesh.spmd(
        rps.make_train_step(loss_fn, optimizer, channel, mesh.axis_name, **options),
        in_specs=(P("workers"), P("workers")),
        out_specs=(P("workers"), P()),
    )
    of_step = ("assignment", "model_state_policy")
    rule = {name: value for name, value in options.items() if name not in of_step}
    state = mesh.replicate(start(optimizer, channel, **rule)) if state is None else state
    metrics = None
    for _ in range(num_steps):
        state, metrics = step(state, mesh.put(batches(int(np.asarray(state.step)[0]))))
    return jax.device_get((state, metrics))


@functools.partial(jax.jit, static_argnames="assignment")
def deliveries(step, assignment="random"):
    """The drops that the step with this number suffers, from the seed alone."""
    key = wrap_key(key_data(0))

    def one_worker(_):
        return rps.draw_exchange(CHANNEL, (), key, step, "w", assignment)[0]

    return jax.vmap(one_worker, axis_name="w", axis_size=N)(jnp.zeros(N))


class Average:
    """The exchange of one step in NumPy, as a definition calls it, by the reference rules.

    Of the models, only `part` is exchanged; none where it is None. `state` is the model state.
    Models are dithered before they are rounded; one whose message is the average stays.
    """

    def __init__(self, step, delivery, part, old, before, after, policies, model_state):
        self.step, self.delivery, self.part = step, delivery, part
        self.old, self.policies = old, policies
        self.before, self.state, self.alongside = before, after, model_state == "exchange"

    def __call__(self, values, first=START, reliable=False, overlaps=False, models=True):
        """Averages `[N, SIZE]`; before the first exchange, what is stale is `first`."""
        if self.part is None:
            return values
        on_miss, server, server_drop_rate, dtype = self.policies
        message, first = (x.astype(dtype or np.float32) for x in (values, first))
        if rounds := bool(models and dtype):
            key = rule_key(wrap_key(key_data(0)), self.step)
            dithered = jax.vmap(lambda x: with_dither(x, dtype, key))(values[self.part])
            message[self.part] = np.asarray(dithered).astype(dtype)
        old_average, old_sent = (self.old.setdefault(i, first.copy()) for i in range(2))
        missed = {"own": message, "zero": 0 * message, "stale": old_average}[on_miss]
        own, after = self.before if overlaps else self.state, self.state
        sent, otherwise, last = (
            (tree[self.part], state if self.alongside else {})
            for tree, state in ((message, own), (missed, own), (old_sent, self.old["state"]))
        )
        if reliable:
            average, state = reference.all_reduce(sent)
        else:
            policy = Server(server, server_drop_rate, last if server == "stale" else None)
            average, state = reference.exchange(sent, otherwise, self.delivery, server=policy)
            old_sent[self.part], old_state = reference.sent_or_last(sent, last, self.delivery)
            self.old["state"] = self.old["state"] | old_state
        self.state = after | {name: state[name] + after[name] - own[name] for name in state}
        old_average[self.part] = average
        new = average.astype(np.float32)
        if rounds:
            plain = jax.vmap(lambda x: without_dither(x, dtype, key))(new)
            new = np.where(average == message[self.part], values[self.part], plain)
        values = values.copy()
        values[self.part] = new
        return values


def diloco(x, grads, average, memory):
    x = average(x - LEARNING_RATE * grads)
    if average.part is not None:
        anchor = memory.setdefault("anchor", START.copy())[average.part]
        momentum = memory.setdefault("momentum", 0 * START)[average.part]
        change = anchor - x[average.part]
        momentum[:] = change + np.float32(0.9) * momentum
        anchor -= np.float32(0.7) * (change + np.float32(0.9) * momentum)
        x[average.part] = anchor
    return x


# What a step of each rule makes of all models `[N, SIZE]`, their gradients and the `Average`, and
# of a memory, a dict; a rule that is not here fails the tests.
DEFINITIONS = {
    "rps": lambda x, grads, average, _: average(x - LEARNING_RATE * grads),
    "gradient-averaging": lambda x, grads, average, _: (
        x - LEARNING_RATE * average(grads, first=0 * START, models=False)
    ),
    "diloco": diloco,
    "overlap": lambda x, grads, average, _: average(x, overlaps=True) - LEARNING_RATE * grads,
    "all-reduce": lambda x, grads, average, _: average(x - LEARNING_RATE * grads, reliable=True),
    "local": lambda x, grads, *_: x - LEARNING_RATE * grads,
}


def by_hand(
    num_steps,
    algorithm,
    on_miss="own",
    server="received",
    server_drop_rate=None,
    message_dtype=None,
    local_steps=1,
    fragments=1,
    model_state="exchange",
    assignment="random",
):
    """The same training in NumPy, by the definition of the rule."""
    assert algorithm in DEFINITIONS, f"give {algorithm} its definition in DEFINITIONS"
    state = {"mean": np.zeros(N, np.float32), "calls": np.zeros(N, np.int32)}
    x, old, memory = START, {"state": state}, {}
    every, policies = local_steps // fragments, (on_miss, server, server_drop_rate, message_dtype)
    for step in range(num_steps):
        batch = batches(step)
        turn = step // every % fragments
        part = np.s_[:, turn * SIZE // fragments : (turn + 1) * SIZE // fragments]
        after = {"mean": 0.9 * state["mean"] + 0.1 * batch.mean(1), "calls": state["calls"] + 1}
        average = Average(
            step,
            jax.device_get(deliveries(step, assignment)),
            None if (step + 1) % every else part,
            *(old, state, after, policies, model_state),
        )
        x = DEFINITIONS[algorithm](x, x - batch, average, memory)
        state = average.state
    return x, state["mean"], state["calls"]


def assert_is_its_definition(num_steps, algorithm, model_state="exchange", devices=N, **options):
    state, _ = run(
        num_steps, N // devices, algorithm=algorithm, model_state_policy=model_state, **options
    )
    x, mean, calls = by_hand(num_steps, algorithm, model_state=model_state, **options)
    np.testing.assert_allclose(state.params["x"], x, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(state.model_state["mean"], mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(state.model_state["calls"], calls)


@pytest.mark.parametrize("algorithm", RULES)
@pytest.mark.parametrize("model_state", ["exchange", "local"])
def test_each_algorithm_is_its_definition(algorithm, model_state):
    options = {} if RULES[algorithm]().every == 1 else {"local_steps": 1}
    assert_is_its_definition(3, algorithm, model_state, **options)


POLICIES = [
    ("rps", {"on_miss": "stale"}),
    ("rps", {"server": "zero-filled"}),
    ("rps", {"server": "unbiased", "server_drop_rate": 0.3}),
    ("rps", {"server": "stale"}),
    ("rps", {"local_steps": 2}),
    ("rps", {"server": "stale", "on_miss": "stale", "local_steps": 2}),
    ("overlap", {"local_steps": 2}),
    ("overlap", {"server": "stale", "on_miss": "stale"}),
    ("gradient-averaging", {"on_miss": "zero"}),
    ("gradient-averaging", {"on_miss": "stale", "server": "stale"}),
    ("gradient-averaging", {"on_miss": "zero", "server": "unbiased", "server_drop_rate": 0.3}),
    ("diloco", {"local_steps": 2}),
    ("diloco", {"local_steps": 1, "server": "zero-filled"}),
    ("diloco", {"local_steps": 2, "fragments": 2, "server": "stale", "on_miss": "stale"}),
    ("rps", {"message_dtype": "bfloat16"}),
    ("overlap", {"message_dtype": "float16"}),
    ("gradient-averaging", {"message_dtype": "float16", "on_miss": "stale", "server": "stale"}),
    ("diloco", {"message_dtype": "float16", "local_steps": 2, "fragments": 2, "server": "stale"}),
]


@pytest.mark.parametrize(
    ("algorithm", "options"),
    [
        *POLICIES[::2],
        *(pytest.param(*policy, marks=pytest.mark.long) for policy in POLICIES[1::2]),
    ],
)
def test_each_policy_is_its_definition(algorithm, options):
    assert_is_its_definition(4, algorithm, **options)


@pytest.mark.long
@pytest.mark.parametrize(("algorithm", "options"), POLICIES)
@pytest.mark.parametrize("devices", [1, 4])
def test_each_policy_is_its_definition_wherever_the_workers_are(algorithm, options, devices):
    assert_is_its_definition(4, algorithm, devices=devices, **options)


def test_a_poison_in_the_model_state_that_was_dropped_reaches_no_one():
    """Servers whose messages are stale have what reached them of the model state, too."""
    drops, optimizer = rps.Bernoulli(1.0, all_gather_drop_rate=0.0), optax.sgd(RATE)
    step = rps.make_train_step(
        lambda params, model_state, batch, key: (params.sum(), batch),
        *(optimizer, drops, "w"),
        **{"server": "stale", "assignment": "fixed"},
    )
    own = np.arange(1.0, 1 + N * N, dtype=np.float32).reshape(N, N)
    poisoned = np.where((np.arange(N)[:, None] == 0) & (np.arange(N) == N - 1), np.nan, own)
    state = rps.init_train_state(jnp.zeros(N), jnp.zeros(N), optimizer, drops, N, server="stale")
    state = jax.tree.map(lambda x: jnp.stack([x] * N), state)
    state, _ = jax.jit(jax.vmap(step, axis_name="w"))(state, poisoned)
    # Of its block a server has its own, and the first state of others; the model is cut before.
    server_has = np.where(np.arange(N)[:, None] == (N + np.arange(N)) // 2, own, 0)
    np.testing.assert_array_equal(state.sent, server_has)
    np.testing.assert_allclose(state.model_state, np.tile(server_has.mean(0), (N, 1)), rtol=1e-6)


def one_more(tree, otherwise, server):
    """An exchange that brings one more of everything."""
    del otherwise, server
    return jax.tree.map(lambda x: x + 1, tree)


one_more.delivery = rps.Delivery(*[np.ones(2, bool)] * 3)


def test_fragments_of_any_leaves_take_turns_and_send_their_part():
    rule = rps.rules.DiLoCo(local_steps=6, fragments=3)
    params = {"a": jnp.arange(10.0).reshape(2, 5), "b": jnp.float32(3), "c": jnp.zeros((0, 2))}
    sends = jax.eval_shape(rule.sends, params)
    assert [leaf.shape for leaf in jax.tree.leaves(sends)] == [(4,), (1,), (0,)]
    on_params = jax.jit(lambda params, memory: rule.on_params(params, memory, one_more))
    memory, changed = rule.init(params), []
    for _ in range(4):
        after, memory = on_params(params, memory)
        assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, params)
        changed.append([np.flatnonzero(after[name] != params[name]).tolist() for name in "abc"])
    first = [[0, 1, 2, 3], [0], []]
    assert changed == [first, [[4, 5, 6, 7], [], []], [[8, 9], [], []], first]


def test_an_outer_optimizer_is_given_the_change_and_the_anchor():
    outer = optax.chain(optax.add_decayed_weights(0.5), optax.sgd(0.1))
    rule, anchor = rps.rules.DiLoCo(outer=outer), jnp.arange(3.0)
    after, _ = rule.on_params(anchor, rule.init(anchor), one_more)
    np.testing.assert_allclose(after, anchor - 0.1 * (-1 + 0.5 * anchor), rtol=1e-6)
    with pytest.raises(TypeError, match=r"outer=0.7: expected an optax.GradientTransformation"):
        rps.rules.DiLoCo(outer=0.7)


def test_local_steps_send_nothing():
    _, metrics = run(1, local_steps=2)
    np.testing.assert_array_equal(metrics.delivered, 0)
    _, metrics = run(2, local_steps=2, channel=rps.Bernoulli(0.0))
    np.testing.assert_array_equal(metrics.delivered, 1)


@pytest.mark.parametrize(
    ("algorithm", "options", "message"),
    [
        ("rps", {"on_miss": "zero"}, "on_miss='zero': expected one of own, stale"),
        ("rps", {"server": "mean"}, "server='mean': expected one of received, zero-filled"),
        ("rps", {"server": "unbiased"}, r"server_drop_rate=None: expected a number in \[0, 1\)"),
        ("rps", {"server_drop_rate": 0.1}, "server_drop_rate=0.1: expected None, with server"),
        (
            "rps",
            {"server": "unbiased", "server_drop_rate": 1.0},
            r"server_drop_rate=1.0: expected a number in \[0, 1\)",
        ),
        ("rps", {"local_steps": 0}, "local_steps=0: expected an integer of at least 1"),
        ("rps", {"local_steps": 2.5}, "local_steps=2.5: expected an integer of at least 1"),
        ("diloco", {"fragments": 1.5}, "fragments=1.5: expected a divisor of 30 local steps"),
        ("diloco", {"outer_learning_rate": "x"}, "outer_learning_rate='x': expected a positive"),
        ("diloco", {"outer_momentum": 1.0}, r"outer_momentum=1.0: expected a number in \[0, 1\)"),
        (
            "diloco",
            {"local_steps": 4, "fragments": 3},
            "fragments=3: expected a divisor of 4 local",
        ),
        ("diloco", {"fragments": 0}, "fragments=0: expected a divisor of 30 local steps"),
        ("all-reduce", {"on_miss": "own"}, "on_miss='own': expected no options, for AllReduce"),
    ],
)
def test_policies_without_sense_are_refused(algorithm, options, message):
    with pytest.raises(ValueError, match=message):
        rps.rules.make_rule(algorithm, **options)


def test_the_assignment_can_be_fixed():
    assert_is_its_definition(2, "rps", assignment="fixed")


def test_without_drops_models_and_gradients_agree():
    """With plain SGD, averaging models is averaging gradients while the models are equal."""
    runs = [
        run(4, channel=rps.Reliable(), algorithm=algorithm)[0].params["x"]
        for algorithm in ("rps", "gradient-averaging", "all-reduce")
    ]
    np.testing.assert_allclose(runs[0], runs[1], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(runs[0], runs[2], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("workers_per_device", [2, 8])
def test_placement_changes_nothing(workers_per_device):
    spread, metrics = run(3, 1)
    packed, packed_metrics = run(3, workers_per_device)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
        (spread, metrics),
        (packed, packed_metrics),
    )
    # The drops are the same to the bit.
    np.testing.assert_array_equal(metrics.delivered, packed_metrics.delivered)


def test_metrics_tell_the_truth_of_losses_and_of_the_network():
    metrics = {algorithm: run(1, algorithm=algorithm)[1] for algorithm in RULES}
    loss = np.mean(0.5 * np.sum((START - batches(0)) ** 2, axis=1))
    for of_rule in metrics.values():
        np.testing.assert_allclose(of_rule.loss, loss, rtol=1e-5)
    delivered = {algorithm: np.mean(of_rule.delivered) for algorithm, of_rule in metrics.items()}
    assert delivered["all-reduce"] == 1
    assert delivered["local"] == 0
    assert 0.5 < delivered["rps"] == delivered["gradient-averaging"] < 0.9


def test_optimizer_state_stays_with_its_worker():
    state, _ = run(2, optimizer=optax.sgd(RATE, momentum=0.9))
    trace = jax.tree.leaves(state.opt_state)[0]
    assert trace.shape == (N, SIZE)
    assert len(np.unique(trace[:, 0])) == N


@pytest.mark.parametrize("algorithm", ["rps", "overlap"])
def test_an_optimizer_may_look_at_the_loss(algorithm):
    channel = rps.Bernoulli(1.0)
    # Of 0.5 |x - b|^2, whose gradient is x - b, the step of Polyak leads to halfway.
    state, _ = run(1, optimizer=optax.polyak_sgd(), channel=channel, algorithm=algorithm)
    halfway = (START + batches(0)) / 2
    np.testing.assert_allclose(state.params["x"], halfway, rtol=1e-5, atol=1e-5)


def test_a_state_resumes_where_it_was():
    whole, _ = run(5)
    half, _ = run(2)
    resumed, _ = run(3, state=rps.worker_mesh(N, 1).put(half))
    jax.tree.map(np.testing.assert_array_equal, whole, resumed)


def test_a_step_compiles_once():
    traces = []

    def counted(*args):
        traces.append(1)
        return loss_fn(*args)

    mesh = rps.worker_mesh(N, 1)
    optimizer = optax.sgd(RATE)
    step = mesh.spmd(
        rps.make_train_step(counted, optimizer, CHANNEL, mesh.axis_name),
        in_specs=(P("workers"), P("workers")),
        out_specs=(P("workers"), P()),
    )
    state = mesh.replicate(start(optimizer))
    state, _ = step(state, mesh.put(batches(0)))
    once = len(traces)
    for number in range(1, 4):
        state, _ = step(state, mesh.put(batches(number)))
    assert len(traces) == once


def test_workers_and_steps_have_keys_of_their_own():
    def loss_is_noise(params, model_state, batch, key):
        return jax.random.uniform(key) + 0 * params["x"].sum(), {"noise": jax.random.uniform(key)}

    mesh = rps.worker_mesh(N, 1)
    optimizer = optax.sgd(RATE)
    make = rps.make_train_step(
        loss_is_noise, optimizer, CHANNEL, mesh.axis_name, model_state_policy="local"
    )
    step = mesh.spmd(make, (P("workers"), P("workers")), (P("workers"), P()))
    one = rps.init_train_state(params(), {"noise": jnp.float32(0)}, optimizer, CHANNEL, N)
    state = mesh.replicate(one)
    seen = []
    for _ in range(3):
        state, _ = step(state, mesh.put(batches(0)))
        seen.extend(np.asarray(state.model_state["noise"]).tolist())
    assert len(set(seen)) == 3 * N


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"algorithm": "push-pull"}, "algorithm='push-pull': expected one of rps, gradient-"),
        ({"model_state_policy": "drop"}, "model_state_policy='drop': expected one of exchange"),
        ({"on_miss": "skip", "algorithm": "gradient-averaging"}, "on_miss='skip': expected one"),
        ({"assignment": "sticky"}, "assignment='sticky': expected one of random, fixed"),
    ],
)
def test_bad_arguments_raise(options, message):
    with pytest.raises(ValueError, match=message):
        run(1, **options)


@pytest.mark.parametrize(
    ("algorithm", "options", "others"),
    [
        ("rps", {"server": "stale"}, {}),
        ("gradient-averaging", {"on_miss": "stale"}, {}),
        ("diloco", {}, {}),
        ("overlap", {"server": "stale"}, {}),
        ("diloco", {"fragments": 5}, {"algorithm": "diloco", "fragments": 2}),
    ],
)
def test_a_state_of_another_rule_is_refused(algorithm, options, others):
    optimizer = optax.sgd(RATE)
    step = rps.make_train_step(loss_fn, optimizer, CHANNEL, "w", algorithm=algorithm, **options)
    of_all = jax.tree.map(lambda x: jnp.stack([x] * N), start(optimizer, **others))
    with pytest.raises(ValueError, match=r"state.rule_state has leaves .*: expected those of"):
        jax.eval_shape(jax.vmap(step, axis_name="w"), of_all, batches(0))


def test_a_rule_that_exchanges_twice_in_a_step_is_refused():
    class Twice(rps.rules.AllReduceModels):
        def on_params(self, params, memory, average):
            return super().on_params(average(params, otherwise=params), memory, average)

    optimizer = optax.sgd(RATE)
    step = rps.make_train_step(loss_fn, optimizer, CHANNEL, "w", algorithm=Twice())
    of_all = jax.tree.map(lambda x: jnp.stack([x] * N), start(optimizer, algorithm=Twice()))
    with pytest.raises(ValueError, match=r"average\(\) was called twice: expected one exchange"):
        jax.eval_shape(jax.vmap(step, axis_name="w"), of_all, batches(0))


def test_a_rule_that_needs_a_reliable_network_is_refused_another():
    rule, carrier = rps.rules.AllReduceModels(), rps.MaskedCollectives(CHANNEL, "w")
    with pytest.raises(ValueError, match=r"carrier=Masked.*: expected one that drops nothing"):
        rps.make_step(loss_fn, optax.sgd(RATE), rule, carrier)


def test_a_rule_that_sends_nothing_needs_no_reliable_network():
    carrier = rps.MaskedCollectives(CHANNEL, "w")
    assert callable(rps.make_step(loss_fn, optax.sgd(RATE), rps.rules.Local(), carrier))


def test_errors_name_the_leaf_of_the_model_state():
    optimizer = optax.sgd(RATE)
    step = rps.make_train_step(loss_of_flag, optimizer, CHANNEL, "w")
    state = rps.init_train_state(params(), {"flag": jnp.array(True)}, optimizer, CHANNEL, N)
    of_all = jax.tree.map(lambda x: jnp.stack([x] * N), state)
    with pytest.raises(TypeError, match=r"leaf .model_state\['flag'\] has dtype bool"):
        jax.eval_shape(jax.vmap(step, axis_name="w"), of_all, batches(0))


def loss_of_flag(params, model_state, batch, key):
    del key
    return jnp.sum((params["x"] - batch) ** 2), model_state
