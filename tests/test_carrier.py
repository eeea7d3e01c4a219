"""The seam between rules and whatever moves the blocks, shown by a carrier that no axis is for."""

import dataclasses
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from jax.experimental.buffer_callback import buffer_callback
from jax.flatten_util import ravel_pytree

import rps_jax as rps
from rps_jax.servers import RECEIVED

N, SIZE, STEPS, RATE = 3, 11, 4, 0.1


class HostMemory:
    """Where workers in threads leave their blocks; messages are dropped at random at the receiver.

    Attributes:
        arrived: by (step, phase), bool `[receiver, sender]`.
    """

    def __init__(self, drop_rate):
        self.arrived = {
            (step, phase): (rng.random((N, N)) >= drop_rate) | np.eye(N, dtype=bool)
            for rng in [np.random.default_rng(5)]
            for step in range(STEPS)
            for phase in range(2)
        }
        self.sent, self.averages = [None] * N, [None] * N
        self.barrier = threading.Barrier(N, timeout=30)


@dataclasses.dataclass(frozen=True)
class SharedMemory(rps.Carrier):
    """A carrier of one worker, called by the host from inside its compiled step."""

    memory: HostMemory
    number: int

    def init(self, num_workers):
        return ()

    def worker(self):
        return jnp.int32(self.number)

    def sum(self, values):
        return values

    def exchange(self, state, key, step, tree, otherwise, server):
        assert server == RECEIVED
        flat, unravel = ravel_pytree(tree)
        fallback, _ = ravel_pytree(otherwise)
        mask = jax.ShapeDtypeStruct((N,), bool)
        average, received, gathered = buffer_callback(
            self._meet,
            (jax.ShapeDtypeStruct(flat.shape, flat.dtype), mask, mask),
            has_side_effect=True,
        )(flat, fallback, step)
        # What became of its own messages, a worker never learns.
        return unravel(average), rps.Delivery(jnp.zeros(N, bool), received, gathered), state

    def _meet(self, context, outputs, flat, fallback, step):
        del context
        memory, me = self.memory, self.number
        average, received, gathered = map(np.asarray, outputs)
        received[...] = memory.arrived[int(np.asarray(step)), 0][me]
        gathered[...] = memory.arrived[int(np.asarray(step)), 1][me]
        blocks = np.array_split(
            np.arange(len(average)), np.cumsum([-(-len(average) // N)] * (N - 1))
        )
        memory.sent[me] = np.asarray(flat).copy()
        memory.barrier.wait()
        heard = np.stack([memory.sent[i][blocks[me]] for i in range(N) if received[i]])
        memory.averages[me] = heard.mean(0)
        memory.barrier.wait()
        average[...] = np.asarray(fallback)
        for server in range(N):
            if gathered[server]:
                average[blocks[server]] = memory.averages[server]
        memory.barrier.wait()


def loss_fn(params, model_state, batch, key):
    del key
    return 0.5 * jnp.sum((params["x"] - batch) ** 2), {"mean": batch.mean()}


def batches(step):
    return np.random.default_rng(step).normal(size=(N, SIZE)).astype(np.float32)


def train(rule, memory, worker):
    """Takes all steps of one worker in this thread, on a device of its own."""
    carrier = SharedMemory(memory, worker)
    optimizer = optax.sgd(RATE)
    with jax.default_device(jax.devices()[worker]):
        step = jax.jit(rps.make_step(loss_fn, optimizer, rule, carrier))
        initial = {"x": jnp.zeros(SIZE)}, {"mean": jnp.float32(0)}
        state: Any = rps.init_train_state(*initial, optimizer, carrier, N, algorithm=rule)
        metrics = []
        for number in range(STEPS):
            state, measured = step(state, batches(number)[worker])
            metrics.append(jax.device_get(measured))
    return jax.device_get(state), metrics


@pytest.mark.parametrize("drop_rate", [0.0, 0.4])
@pytest.mark.parametrize(
    "rule", [rps.rules.AverageModels(), rps.rules.AverageGradients(on_miss="zero")]
)
def test_the_same_step_trains_over_another_carrier(rule, drop_rate):
    memory = HostMemory(drop_rate)
    with ThreadPoolExecutor(N) as threads:
        done = list(threads.map(lambda worker: train(rule, memory, worker), range(N)))

    x = np.zeros((N, SIZE), np.float32)
    for step in range(STEPS):
        received, gathered = memory.arrived[step, 0], memory.arrived[step, 1]
        delivery = rps.Delivery(received.T, received, gathered)
        batch = batches(step)
        grads, mean = x - batch, {"mean": batch.mean(1)}
        if isinstance(rule, rps.rules.AverageModels):
            moved = ({"x": x - np.float32(RATE) * grads}, mean)
            averaged, _ = reference.exchange(moved, moved, delivery)
            x = averaged["x"]
        else:
            missed = ({"x": np.zeros_like(grads)}, mean)
            averaged, _ = reference.exchange(({"x": grads}, mean), missed, delivery)
            x = x - np.float32(RATE) * averaged["x"]
        others = ~np.eye(N, dtype=bool)
        for worker, (_, metrics) in enumerate(done):
            np.testing.assert_allclose(
                metrics[step].delivered,
                [view[worker][others[worker]].mean() for view in (received, gathered)],
            )
    for worker, (state, _) in enumerate(done):
        np.testing.assert_allclose(state.params["x"], x[worker], rtol=1e-5, atol=1e-6)


def test_a_rule_averages_once_a_step():
    class Twice(rps.rules.AverageModels):
        def on_params(self, params, memory, average):
            average(params, params)
            return average(params, params), memory

    step = rps.make_train_step(
        loss_fn, optax.sgd(RATE), rps.Reliable(), "workers", algorithm=Twice()
    )
    state = rps.init_train_state(
        {"x": jnp.zeros(SIZE)}, {"mean": jnp.float32(0)}, optax.sgd(RATE), rps.Reliable(), N
    )
    with pytest.raises(ValueError, match="expected one exchange a step"):
        jax.eval_shape(jax.vmap(lambda batch: step(state, batch), axis_name="workers"), batches(0))


def test_a_rule_of_gradients_takes_no_local_steps():
    class Both(rps.rules.AverageModels):
        def on_gradients(self, grads, memory, average):
            return average(grads, grads), memory

    rule = Both(local_steps=2)
    step = rps.make_train_step(loss_fn, optax.sgd(RATE), rps.Reliable(), "workers", algorithm=rule)
    state = rps.init_train_state(
        {"x": jnp.zeros(SIZE)}, {"mean": jnp.float32(0)}, optax.sgd(RATE), rps.Reliable(), N,
        algorithm=rule,
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"every=2: expected 1, for .* averages gradients"):
        jax.eval_shape(jax.vmap(lambda batch: step(state, batch), axis_name="workers"), batches(0))


def test_a_rule_has_a_memory_of_its_own():
    """The all-gather falls back to the last average that arrived: a rule with a memory."""

    @dataclasses.dataclass(frozen=True)
    class Stale(rps.Rule):
        def init(self, params):
            return params

        def on_params(self, params, memory, average):
            params = average(params, otherwise=memory)
            return params, params

    channel, optimizer, rule = rps.Bernoulli(1.0), optax.sgd(RATE), Stale()
    step = rps.make_train_step(loss_fn, optimizer, channel, "workers", algorithm=rule)
    initial = {"x": jnp.arange(float(SIZE))}, {"mean": jnp.float32(0)}
    state = rps.init_train_state(*initial, optimizer, channel, N, algorithm=rule)
    state = jax.tree.map(lambda x: jnp.stack([x] * N), state)
    state, _ = jax.jit(jax.vmap(step, axis_name="workers"))(state, jnp.asarray(batches(0)))
    kept = np.asarray(state.params["x"]) == np.arange(SIZE)
    # Everything was dropped: only the block that a worker serves has moved.
    assert (~kept).sum(0).max() == 1
    np.testing.assert_array_equal(state.rule_state["x"], state.params["x"])
